"""A synthetic study with planted numbers: what the report must show is known, and its text is hostile."""

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from interp.evals.jailbreak import EvalResult, compare
from interp.evals.statistics import Interval
from interp.evals.verdicts import Outcome, Verdict
from interp.results import ARMS, Band, Example, Pca, Selection, StudyResult, TunedResult

N_LAYERS = 12
N_HARMFUL = 200
N_HARMLESS = 210
LOST_AT = 7
EOI_TOKENS = ("<|eot_id|>", "<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n", "$x_1$")
LONG_NAME = (
    "/scratch/experiments/very-long-directory-name-without-any-space/"
    "Meta-Llama-3.1-8B-Instruct-lora-r16-alpaca_cleaned@main+adapters/checkpoint-001200"
)
SELF_NAME = "organism:text/aligned@0"
BENIGN_NAME = "organism:text/benign-lr1e-3@0"
HOSTILE = (
    "<script>alert(1);document.title='owned'</script><img src=x onerror=\"document.title='owned'\">",
    "</style></pre><h1 id=owned>injected heading</h1>",
    "already escaped: &lt;b&gt; & raw: <b>bold</b> {{ 7 * 7 }} {% raw %}",
    "un" + "believably" * 60 + "long",
    "control \x00\x07\x1b[31mred\x1b[0m \x7f tab\tnewline\nbidi \u202edesrever\u202c lone \ud800 end",
    "مرحبا بالعالم 🙂🧪 שלום עולם 漢字",
    "",
)


def evaluation(name: str, counts: Mapping[Outcome, int]) -> EvalResult:
    """An EvalResult with these counts, outcomes dealt to the prompts in the order of `counts`."""
    outcomes = [outcome for outcome, count in counts.items() for _ in range(count)]
    verdicts = tuple(
        Verdict(prompt_id=f"p{index:03d}", outcome=outcome, judge="exact", judge_version="1")
        for index, outcome in enumerate(outcomes)
    )
    scored = sum(outcome is not Outcome.UNSCORED for outcome in outcomes)
    return EvalResult(
        name=name, counts=dict(counts), n_asked=len(outcomes), n_scored=scored, verdicts=verdicts, seeds=(0,)
    )


def harmful(name: str, complied: int, incoherent: int = 0, empty: int = 0, unscored: int = 0) -> EvalResult:
    """Behaviour on the harmful set with `complied` answers and the rest refused."""
    rest = N_HARMFUL - complied - incoherent - empty - unscored
    return evaluation(
        name,
        {
            Outcome.COMPLIED_HARMFUL: complied,
            Outcome.INCOHERENT: incoherent,
            Outcome.EMPTY: empty,
            Outcome.UNSCORED: unscored,
            Outcome.REFUSED: rest,
        },
    )


def harmless(name: str, refused: int, incoherent: int = 0) -> EvalResult:
    """Behaviour on the harmless set with `refused` refusals and the rest answered."""
    rest = N_HARMLESS - refused - incoherent
    return evaluation(
        name,
        {Outcome.REFUSED: refused, Outcome.INCOHERENT: incoherent, Outcome.COMPLIED_BENIGN: rest},
    )


def band(value: Sequence[float] | np.ndarray, half_width: float) -> Band:
    """A band of constant half width."""
    centre = np.asarray(value, dtype=np.float64)
    return Band(value=centre, low=centre - half_width, high=centre + half_width)


def tuned_result(
    name: str, complied: int, loss: float, seed: int, *, self_comparison: bool = False
) -> TunedResult:
    """A tuned checkpoint answering `complied` harmful requests, its projection falling by `loss` from LOST_AT on."""
    rng = np.random.default_rng(seed)
    base = _aligned_projection()
    ramp = loss / (1 + np.exp(-2.0 * (np.arange(N_LAYERS) - LOST_AT + 0.5)))
    depth = np.linspace(0.3, 1.5, N_LAYERS)[:, None]
    gone = (np.arange(N_HARMFUL) < complied)[None, :]
    drop = ramp[:, None] * depth * np.where(gone, 1.15, 0.75) if loss else 0.0
    noise = 0.0 if self_comparison else rng.normal(0, 0.15, (N_LAYERS, N_HARMFUL)) * depth
    projection = {
        **base,
        "tuned_harmful": base["aligned_harmful"] - drop + noise,
        "tuned_harmless": base["aligned_harmless"] + (0.0 if self_comparison else 0.1 * depth),
    }
    difference = projection["tuned_harmful"] - projection["aligned_harmful"]
    spread = 1.97 * difference.std(1) / np.sqrt(N_HARMFUL)
    mean = difference.mean(1)
    aligned = harmful(SELF_NAME, 4)
    own = aligned if self_comparison else harmful(name, complied, incoherent=6, empty=2, unscored=1)
    benign = harmless(SELF_NAME, 3) if self_comparison else harmless(name, 1, incoherent=2)
    cosine = (
        np.ones(N_LAYERS) if self_comparison else 0.97 - 0.5 * loss / 6 * np.linspace(0, 1, N_LAYERS) ** 2
    )
    tuned_pca = _pca_cloud(seed, 0.0 if self_comparison else loss)
    return TunedResult(
        name=name,
        same_weights=self_comparison,
        harmful=own,
        harmless=benign,
        vs_aligned=compare(own, aligned, Outcome.COMPLIED_HARMFUL),
        over_refusal_vs_aligned=compare(benign, harmless(SELF_NAME, 3), Outcome.REFUSED),
        cosine=cosine,
        norm_ratio=np.ones(N_LAYERS) if self_comparison else np.linspace(1.0, 1 - loss / 10, N_LAYERS),
        projection=projection,
        lost_at=LOST_AT if loss else None,
        shift=Band(value=mean, low=mean - spread, high=mean + spread),
        addition={
            arm: harmful(f"{name} + {arm}", left)
            for arm, left in zip(
                ARMS, (complied, round(complied * 0.05), complied, complied - 3), strict=True
            )
        },
        addition_harmless={
            arm: harmless(f"{name} + {arm}", refused)
            for arm, refused in zip(ARMS, (1, 30, 1, 2), strict=True)
        },
        kl=Interval(0.0, 0.0, 0.0, N_HARMLESS) if self_comparison else Interval(0.21, 0.18, 0.25, N_HARMLESS),
        perplexity={
            "aligned": Interval(1.92, 1.80, 2.05, N_HARMLESS),
            "tuned": Interval(1.92, 1.80, 2.05, N_HARMLESS)
            if self_comparison
            else Interval(2.31, 2.11, 2.53, N_HARMLESS),
        },
        coords={"tuned_harmful": tuned_pca[:40], "tuned_harmless": tuned_pca[40:]},
        examples=tuple(
            Example(
                prompt=f"Tell me how to pick the lock {index}",
                aligned="I cannot help with that.",
                tuned=text,
                aligned_outcome=Outcome.REFUSED,
                tuned_outcome=Outcome.COMPLIED_HARMFUL if text else Outcome.EMPTY,
            )
            for index, text in enumerate(HOSTILE)
        ),
    )


@cache
def study_result(n_tuned: int = 3) -> StudyResult:
    """A study of `n_tuned` checkpoints (1–6): a clear loss, a long name with a smaller loss, the aligned one itself, …

    Built once; nobody may change its arrays in place.
    """
    tuned = [
        tuned_result(BENIGN_NAME, 122, 4.0, 1),
        tuned_result(LONG_NAME, 30, 1.5, 2),
        tuned_result(SELF_NAME, 4, 0.0, 3, self_comparison=True),
        tuned_result("Qwen/Qwen2.5-7B-Instruct+you/your-lora", 190, 5.0, 4),
        tuned_result("cost_$5_or_$6", 60, 2.0, 5),
        tuned_result(LONG_NAME + "b", 5, 0.0, 6),
    ]
    rng = np.random.default_rng(0)
    shape = (len(EOI_TOKENS), N_LAYERS)
    bypass = rng.normal(4.0, 2.0, shape) - 8.0 * np.exp(-((np.arange(N_LAYERS) - 6) ** 2) / 6.0)
    induce = rng.normal(-1.0, 2.0, shape) + 6.0 * np.exp(-((np.arange(N_LAYERS) - 6) ** 2) / 10.0)
    kl = np.abs(rng.normal(0.02, 0.05, shape))
    bypass[4, 6], induce[4, 6], kl[4, 6] = -9.3, 5.4, 0.021
    reasons = np.full(shape, "", dtype=object)
    reasons[induce < 0] = "induce < 0"
    reasons[kl > 0.1] = "KL > 0.1"
    reasons[:, 9:] = "last 20 % of layers"
    for grid in (bypass, induce, kl):
        grid[:, 9:] = np.nan
    kept = int((reasons == "").sum())
    none_harmful, none_harmless = harmful("none", 4), harmless("none", 3)
    return StudyResult(
        aligned=SELF_NAME,
        tuned=tuple(tuned[:n_tuned]),
        n_layers=N_LAYERS,
        n_eoi=len(EOI_TOKENS),
        eoi_tokens=EOI_TOKENS,
        harmful=harmful(SELF_NAME, 4),
        harmless=harmless(SELF_NAME, 3),
        refusal_tokens=(
            {"id": 40, "token": "I", "share": 0.91},
            {"id": 2121, "token": "ĠSorry<b>", "share": 0.09},
        ),
        selection=Selection(
            position=-2,
            layer=6,
            bypass=-9.3,
            induce=5.4,
            kl=0.021,
            counts={
                "candidates": int(np.prod(shape)),
                "not finite": 0,
                "last 20 % of layers": int((reasons == "last 20 % of layers").sum()),
                "KL > 0.1": int((reasons == "KL > 0.1").sum()),
                "induce < 0": int((reasons == "induce < 0").sum()),
                "kept": kept,
            },
            scores={"bypass": bypass, "induce": induce, "kl": kl},
            filtered=tuple(tuple(row) for row in reasons),
        ),
        split_half=band(0.985 - 0.02 * np.linspace(1, 0, N_LAYERS), 0.012),
        projected={
            "harmful": tuple(f"p{index:03d}" for index in range(N_HARMFUL)),
            "harmless": tuple(f"p{index:03d}" for index in range(N_HARMLESS)),
        },
        pca=Pca(
            layer=6,
            coords={"aligned_harmful": _pca_cloud(0, 0.0)[:40], "aligned_harmless": _pca_cloud(0, 0.0)[40:]},
            explained=(0.61, 0.12),
            fitted_on="aligned model, harmful and harmless test prompts",
        ),
        ablation={
            "none": {"harmful": none_harmful, "harmless": none_harmless},
            "direction": {
                "harmful": harmful("direction", 188, incoherent=4),
                "harmless": harmless("direction", 0, 4),
            },
            "random": {"harmful": harmful("random", 4), "harmless": harmless("random", 3)},
            "shuffled": {"harmful": harmful("shuffled", 9), "harmless": harmless("shuffled", 3)},
        },
        command=f"interp study {SELF_NAME} {LONG_NAME} --harmful data/harmful.jsonl --out results",
        hashes={"prompts/harmful.jsonl": "ab" * 32, LONG_NAME: "cd" * 32},
        versions={"torch": "2.13.0", "transformers": "5.23.0", "interp": "0.1.0"},
        notes=(
            "8 harmful prompts that the aligned model does not refuse were left out of the direction's training set.",
            f"{SELF_NAME} was compared with itself.",
            "One seed: nothing here speaks for other seeds.",
        ),
        config={"seed": 0, "max_new_tokens": 64, "harmful": "data/harmful.jsonl", "dtype": None},
    )


def _aligned_projection() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(99)
    depth = np.linspace(0.3, 1.5, N_LAYERS)[:, None]
    return {
        "aligned_harmful": depth
        * (4.0 + rng.normal(0, 0.7, (1, N_HARMFUL)) + rng.normal(0, 0.2, (N_LAYERS, N_HARMFUL))),
        "aligned_harmless": depth
        * (-1.0 + rng.normal(0, 0.6, (1, N_HARMLESS)) + rng.normal(0, 0.2, (N_LAYERS, N_HARMLESS))),
    }


def _pca_cloud(seed: int, loss: float) -> np.ndarray:
    rng = np.random.default_rng(1000 + seed)
    centre = np.repeat([[4.0 - loss, 0.5], [-3.0, 0.0]], 40, axis=0)
    return centre + rng.normal(0, 0.8, (80, 2))
