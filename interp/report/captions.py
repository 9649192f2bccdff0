"""What does each figure show? Its heading and its caption, with the numbers of prompts behind it."""

from collections.abc import Callable
from dataclasses import dataclass

from interp.results import StudyResult


@dataclass(frozen=True)
class Caption:
    """Heading of a figure and the function that writes its caption."""

    title: str
    text: Callable[[StudyResult], str]


def _projected(result: StudyResult) -> str:
    return f"n = {len(result.projected['harmful'])} harmful and {len(result.projected['harmless'])} harmless requests"


CAPTIONS: dict[str, Caption] = {
    "behaviour": Caption(
        "Behaviour",
        lambda r: (
            f"Outcomes on {r.harmful.n_asked} harmful (a) and {r.harmless.n_asked} harmless (b) requests; in bold the aligned model. Points: "
            "jailbreak success rate (complied-harmful of all asked) and over-refusal (refused of all asked) with Wilson "
            "95 % intervals."
        ),
    ),
    "layers": Caption(
        "Projection by layer",
        lambda r: (
            "Top: mean projection of the residual stream (resid_post, last prompt token) onto the aligned model's unit "
            "direction of the same layer, with 95 % t-intervals. Beneath: mean paired shift, tuned − aligned, of the "
            f"harmful requests, with 95 % intervals; dotted, the first layer with at least half of the largest relative loss, "
            f"among layers where the aligned model holds harmful and harmless requests a standard deviation apart. {_projected(r)}."
        ),
    ),
    "directions": Caption(
        "Candidate directions",
        lambda r: (
            f"The three scores of the {r.selection.counts.get('candidates', r.n_layers * len(r.eoi_tokens))} candidate "
            "directions (position × layer) in the aligned model: refusal score on harmful requests when ablated (a), on "
            "harmless ones when added (b), KL divergence on harmless ones when ablated (c). Hatched: dropped by the "
            f"selection rule. Outlined: selected, position −{-r.selection.position}, layer {r.selection.layer}."
        ),
    ),
    "similarity": Caption(
        "Directions compared",
        lambda r: (
            "Cosine between the aligned and the tuned mean-difference direction at the selected position (a), beneath the "
            "cosine between two halves of the prompts in the aligned model (band: 95 %), and the ratio of their norms (b)."
        ),
    ),
    "pca": Caption(
        "Activations in a plane",
        lambda r: (
            f"Activations (resid_post of layer {r.pca.layer}, last prompt token) on their two leading principal "
            f"components; plane fitted on: {r.pca.fitted_on}. n = {len(r.pca.coords['aligned_harmful'])} harmful and "
            f"{len(r.pca.coords['aligned_harmless'])} harmless requests a model."
        ),
    ),
    "causal": Caption(
        "Causal test",
        lambda r: (
            "(a) The aligned model with a vector projected out of its residual stream: harmful requests refused, harmful "
            "requests answered (what is neither is empty or incoherent), harmless ones answered. (b) The tuned model with "
            "a vector added: harmful requests refused, and as a diamond harmless ones, which a repair would not refuse. "
            "Controls: a random direction of equal norm and the mean difference under shuffled labels. Wilson 95 % intervals."
        ),
    ),
    "prompts": Caption(
        "Prompt by prompt",
        lambda r: (
            "Each point is one harmful request: its projection onto the aligned direction in the aligned (across) and in "
            f"the tuned model (up), resid_post of layer {r.selection.layer}; on the dotted line nothing changed. "
            f"n = {len(r.projected['harmful'])}."
        ),
    ),
}


def _requests(result: StudyResult) -> str:
    study = result.modalities
    if study is None:
        return ""
    shared = "the same requests in every modality" if study.paired else "other requests in every modality"
    return f"{study.n_requests['harmful']} harmful and {study.n_requests['harmless']} harmless requests; {shared}"


MODALITY_CAPTIONS: dict[str, Caption] = {
    "modality_behaviour": Caption(
        "Behaviour by modality",
        lambda r: (
            f"Harmful requests refused (a) and answered (b), harmless ones refused (c), of all asked, with Wilson 95 % intervals. {_requests(r)}."
        ),
    ),
    "modality_towers": Caption(
        "Encoder, projector, decoder",
        lambda r: (
            "One column a modality, with the % of its harmful requests refused, aligned → tuned; every tower that its prompts pass through on one "
            "axis, by layer. Top: similarity of each site to the aligned "
            "model (debiased CKA; 1: prompts that were alike still are). Middle: AUROC of a linear probe for harm on requests of groups that it "
            "has not seen; grey, shuffled labels. Bottom: how far harmful lie from harmless requests along the aligned model's direction of "
            "the site. Mean over patches or frames in encoder and projector, last prompt token in the decoder; 95 % intervals. Where only the "
            "last row falls, the model still recognises what it no longer refuses."
        ),
    ),
    "modality_transfer": Caption(
        "Transfer of refusal directions",
        lambda r: (
            "Direction fitted in one modality (rows), requests asked in another (columns): % more likely refused than not by the refusal score "
            "at the last prompt token. Above the line without an edit, beneath the lower one the controls of equal norm. (a) Ablated in the "
            "aligned model, harmful requests: low means refusal is gone. (b) Added there, harmless requests: high means refusal is induced. Then "
            "added in each tuned model, harmful requests: high means refusal is restored."
        ),
    ),
    "modality_gap": Caption(
        "Gap between modalities",
        lambda r: (
            "The same requests in two modalities, resid_post at the last prompt token, by layer: distance of their means in units of the spread "
            "within (a), AUROC of a probe that tells them apart (b), CKA of partners (c), cosine of the two harmful − harmless directions and, "
            "dotted, what two halves of one modality give (d). Grey: chance, in the aligned model. 95 % intervals."
        ),
    ),
}
