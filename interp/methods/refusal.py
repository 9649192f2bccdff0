"""Which single direction decides refusal? Arditi et al. 2024 (arXiv 2406.11717), end to end and fast.

1. Refusal tokens: what the model opens its refusals with. Refusal score of a prompt, without generation:
   `s = log(P_ref) − log(1 − P_ref)` of their total probability at the last position.
2. Candidates: difference of means of resid_pre at every end-of-instruction position and layer.
3. Three scores a candidate. *induce*: mean `s` on harmless prompts with the candidate added at its own layer; *KL*: of the
   last-position distributions on harmless prompts when it is ablated everywhere; *bypass*: mean `s` on harmful ones then.
4. Selection: drop NaN, layers from 80 % of the depth on, KL > 0.1 and induce < 0; take the smallest bypass.

Scoring goes from cheap to dear and only survivors go on: the layer filter costs nothing; induce restarts at the candidate's
layer from residuals stored once; KL and bypass run many candidates in one batch, another one ablated in each row. Only
last-position logits are computed. What is selected is what scoring everything would select.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.data.prompts import Prompt, PromptSet
from interp.errors import SelectionError, UserError
from interp.geometry.directions import Direction, mean_difference
from interp.models.activations import capture
from interp.models.batches import run_batches
from interp.models.generation import Completion
from interp.models.hooks import Ablate, Add, Edit, editing, reading, starting_at
from interp.models.model import Batch, Model
from interp.models.sites import Site, all_layers
from interp.models.tokens import Tokens
from interp.progress import progress as progress_bar

EPSILON_SCORE = 1e-8
EPSILON_KL = 1e-6
BATCH_TOKENS = 4096  # padded tokens a batch at most


@dataclass(frozen=True)
class SelectionRule:
    """Filters of the selection; the defaults are the source's."""

    layers_below: float = 0.8
    max_kl: float = 0.1
    min_induce: float = 0.0


@dataclass(frozen=True)
class RefusalTokens:
    """First tokens of refusals: ids, text, and the share of refusals and of other answers that open with each."""

    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    share: tuple[float, ...]
    share_complied: tuple[float, ...]

    def __str__(self) -> str:
        shown = (f"{token!r} {share:.0%}" for token, share in zip(self.tokens, self.share, strict=True))
        return "refusals open with " + ", ".join(shown)


def refusal_tokens(
    model: Model, completions: Sequence[Completion], refused: Sequence[bool], *, min_share: float = 0.05
) -> RefusalTokens:
    """Tokens that open at least `min_share` of the refusals and at least twice as many of them as of other answers.

    Raises SelectionError when nothing was refused or refusals open like everything else.
    """
    first: dict[bool, list[int]] = {True: [], False: []}
    for completion, is_refusal in zip(completions, refused, strict=True):
        tokens = (
            completion.token_ids or model.tokenizer(completion.text, add_special_tokens=False)["input_ids"]
        )
        if tokens:
            first[bool(is_refusal)].append(int(tokens[0]))
    if not first[True]:
        raise SelectionError(
            f"{model.name} refused none of {len(completions)} prompts: it has no refusal to look for"
        )

    def share(token: int, kind: bool) -> float:
        return first[kind].count(token) / max(len(first[kind]), 1)

    counted = sorted(set(first[True]), key=lambda token: (-share(token, True), token))
    ids = [t for t in counted if share(t, True) >= min_share and share(t, True) >= 2 * share(t, False)]
    if not ids:
        raise SelectionError(
            f"{model.name} opens its refusals like its other answers ({model.tokenizer.decode(counted[:1])!r}); "
            "the refusal score cannot tell them apart"
        )
    return RefusalTokens(
        tuple(ids),
        tuple(model.tokenizer.decode([token]) for token in ids),
        tuple(share(token, True) for token in ids),
        tuple(share(token, False) for token in ids),
    )


def refusal_score(logits: Float[Tensor, "*batch vocab"], ids: Sequence[int]) -> Float[Tensor, "*batch"]:
    """`log(P_ref + 1e-8) − log(1 − P_ref + 1e-8)` in fp64: above 0 the model is more likely to refuse than not."""
    refuse = logits.double().softmax(-1)[..., list(ids)].sum(-1)
    return torch.log(refuse + EPSILON_SCORE) - torch.log(1 - refuse + EPSILON_SCORE)


@torch.no_grad()
def score_prompts(
    model: Model,
    prompts: Sequence[Prompt],
    ids: Sequence[int],
    *,
    batch_size: int = 64,
    tokens: Sequence[Tokens] | None = None,
) -> list[float]:
    """Refusal score of each prompt at its last token, in order; `tokens`, those of the prompts where they are at hand already."""
    rows = [model.token_ids(prompt) for prompt in prompts] if tokens is None else list(tokens)

    def step(batch: list[int]) -> list[float]:
        padded = model.pad([rows[i] for i in batch], [prompts[i].id for i in batch])
        return refusal_score(model.last_logits(padded), ids).tolist()

    found: dict[int, float] = {}
    for batch, scores in run_batches(model.batches(rows, batch_size, BATCH_TOKENS), step):
        found.update(zip(batch, scores, strict=True))
    return [found[i] for i in range(len(rows))]


def keep_by_refusal(
    model: Model, prompts: PromptSet, ids: Sequence[int], *, refused: bool
) -> tuple[PromptSet, PromptSet]:
    """Prompts that the model refuses (score > 0) or does not (score < 0), as asked for, and those dropped."""
    scores = dict(zip(prompts.ids, score_prompts(model, prompts, ids), strict=True))
    kept = [p for p in prompts if (scores[p.id] > 0 if refused else scores[p.id] < 0)]
    dropped = [p for p in prompts if p.id not in {k.id for k in kept}]
    return PromptSet(kept, name=prompts.name), PromptSet(dropped, name=f"{prompts.name}-dropped")


def candidate_directions(
    model: Model, harmful: Sequence[Prompt], harmless: Sequence[Prompt], *, progress: bool = True
) -> Float[Tensor, "n_pos layer d_model"]:
    """`mean(harmful) − mean(harmless)` of resid_pre at every end-of-instruction position and layer, in fp64."""
    sites = all_layers(model.n_layers, "resid_pre")
    means = [
        capture(model, prompts, sites, "eoi", progress=progress).by_prompt()
        for prompts in (harmful, harmless)
    ]
    return mean_difference(*means).transpose(0, 1)


@dataclass(frozen=True, eq=False)
class CandidateScores:
    """The three scores by (position, layer); NaN where an earlier filter made a score unnecessary."""

    induce: Float[Tensor, "n_pos layer"]
    kl: Float[Tensor, "n_pos layer"]
    bypass: Float[Tensor, "n_pos layer"]


@torch.no_grad()
def score_candidates(
    model: Model,
    candidates: Float[Tensor, "n_pos layer d_model"],
    harmful: Sequence[Prompt],
    harmless: Sequence[Prompt],
    ids: Sequence[int],
    *,
    rule: SelectionRule | None = None,
    complete: bool = False,
    rows: int = 256,
    progress: bool = True,
) -> CandidateScores:
    """Scores of the candidates, from the cheapest to the dearest.

    Args:
        harmful, harmless: validation prompts; bypass is measured on the first, induce and KL on the second.
        ids: refusal tokens.
        rule: what is filtered; a candidate filtered by one score gets NaN in the later ones.
        complete: score every candidate on everything, as the reference procedure does.
        rows: prompts × candidates in one batch; halved when memory runs out.
    """
    rule = rule or SelectionRule()
    n_pos, n_layers, _ = candidates.shape
    nan = torch.full((n_pos, n_layers), float("nan"), dtype=torch.float64)
    induce, kl, bypass = nan.clone(), nan.clone(), nan.clone()
    finite = torch.isfinite(candidates).all(-1) & (candidates != 0).any(-1)
    if not complete:
        finite &= torch.arange(n_layers) < int(rule.layers_below * n_layers)
    alive = [(p, layer) for layer in range(n_layers) for p in range(n_pos) if bool(finite[p, layer])]
    harmless_batch, harmful_batch = model.encode(harmless), model.encode(harmful)

    with progress_bar("candidate directions", total=3 * n_pos * n_layers, enabled=progress) as advance:
        plain, stored = _run_and_store(model, harmless_batch, sorted({layer for _, layer in alive}))
        for layer in sorted({layer for _, layer in alive}):
            here = [candidate for candidate in alive if candidate[1] == layer]
            vectors = torch.stack([candidates[candidate] for candidate in here]).float()
            scores = _induce(model, harmless_batch, stored.pop(layer), layer, vectors, ids, rows)
            for candidate, value in zip(here, scores, strict=True):
                induce[candidate] = value
        advance(n_pos * n_layers)
        if not complete:
            alive = [candidate for candidate in alive if float(induce[candidate]) >= rule.min_induce]
        for candidate, value in _ablated(
            model, harmless_batch, candidates, alive, rows, lambda out: _kl(plain, out)
        ):
            kl[candidate] = value
        advance(n_pos * n_layers)
        if not complete:
            alive = [candidate for candidate in alive if float(kl[candidate]) <= rule.max_kl]
        for candidate, value in _ablated(
            model, harmful_batch, candidates, alive, rows, lambda out: refusal_score(out, ids).mean(-1)
        ):
            bypass[candidate] = value
        advance(n_pos * n_layers)
    return CandidateScores(induce, kl, bypass)


def _run_and_store(model: Model, batch: Batch, layers: Sequence[int]) -> tuple[Tensor, dict[int, Tensor]]:
    """Last-position logits of the untouched model, and resid_pre at all positions of the given layers."""
    stored: dict[int, Tensor] = {}

    def read(site: Site, value: Tensor) -> None:
        stored[site.layer] = value.detach().clone()

    with reading(model, [Site(layer, "resid_pre") for layer in layers], read):
        return model.last_logits(batch), stored


def _induce(
    model: Model, batch: Batch, start: Tensor, layer: int, vectors: Tensor, ids: Sequence[int], rows: int
) -> list[float]:
    """Mean refusal score with each vector added at `layer`, all positions, restarted from that layer."""

    def step(chunk: list[int]) -> list[float]:
        added = vectors[chunk].to(model.device).repeat_interleave(len(start), dim=0)
        with (
            editing(model, {Site(layer, "resid_pre"): Add(added)}),
            starting_at(model, layer, start.repeat(len(chunk), 1, 1)),
        ):
            logits = model.last_logits(batch.repeat(len(chunk)))
        return refusal_score(logits, ids).unflatten(0, (len(chunk), -1)).mean(-1).tolist()

    found: dict[int, float] = {}
    for chunk, scores in run_batches(_chunks(len(vectors), rows, len(start)), step):
        found.update(zip(chunk, scores, strict=True))
    return [found[i] for i in range(len(vectors))]


def _ablated(
    model: Model,
    batch: Batch,
    candidates: Tensor,
    alive: Sequence[tuple[int, int]],
    rows: int,
    measure: Callable[[Float[Tensor, "candidate prompt vocab"]], Float[Tensor, " candidate"]],
) -> list[tuple[tuple[int, int], float]]:
    """A measure of the last-position logits with each candidate ablated everywhere, many candidates in one batch."""
    n = len(batch.prompt_ids)

    def step(chunk: list[int]) -> list[float]:
        directions = torch.stack([candidates[alive[i]] for i in chunk]).float()
        edit = Ablate(directions.to(model.device).repeat_interleave(n, dim=0))
        with editing(model, at_every_write(edit, model.n_layers)):
            logits = model.last_logits(batch.repeat(len(chunk)))
        return measure(logits.unflatten(0, (len(chunk), n))).tolist()

    found: list[tuple[tuple[int, int], float]] = []
    for chunk, values in run_batches(_chunks(len(alive), rows, n), step):
        found += [(alive[i], value) for i, value in zip(chunk, values, strict=True)]
    return found


def at_every_write(edit: Edit, n_layers: int) -> dict[Site, Edit]:
    """Sites that suffice to ablate a direction everywhere: the first block's input and all that is added to it later.

    Equal to `everywhere` up to rounding, since a sum of values without a component has none; with a third fewer hooks.
    """
    return {Site(0, "resid_pre"): edit, **dict.fromkeys(all_layers(n_layers, ("attn_out", "mlp_out")), edit)}


def _chunks(n: int, rows: int, n_prompts: int) -> list[list[int]]:
    size = max(1, rows // n_prompts)
    return [list(range(i, min(i + size, n))) for i in range(0, n, size)]


def _kl(plain: Float[Tensor, "prompt vocab"], ablated: Float[Tensor, "candidate prompt vocab"]) -> Tensor:
    """Mean over prompts of KL(plain ‖ ablated) of the last-position distributions, 1e-6 inside both logs."""
    p, q = plain.double().softmax(-1), ablated.double().softmax(-1)
    return (p * (torch.log(p + EPSILON_KL) - torch.log(q + EPSILON_KL))).sum(-1).mean(-1)


@dataclass(frozen=True, eq=False)
class Selection:
    """The selected candidate, what filtered the others, and how many each filter took."""

    position: int
    layer: int
    counts: dict[str, int]
    reasons: np.ndarray = field(repr=False)

    @property
    def index(self) -> tuple[int, int]:
        """(row of the score arrays, layer); `position` itself counts from the prompt's end."""
        return self.position + self.reasons.shape[0], self.layer


def select(scores: CandidateScores, rule: SelectionRule | None = None) -> Selection:
    """The source's rule applied to stored scores; position is negative, from the end of the prompt.

    Raises SelectionError with the counts per filter when nothing is left.
    """
    rule = rule or SelectionRule()
    n_pos, n_layers = scores.induce.shape
    reasons = np.full((n_pos, n_layers), "", dtype=object)
    late = torch.arange(n_layers).expand(n_pos, n_layers) >= int(rule.layers_below * n_layers)
    filters = [
        ("late layer", late),
        ("induce", scores.induce < rule.min_induce),
        ("KL", scores.kl > rule.max_kl),
        ("NaN", torch.isnan(scores.induce) | torch.isnan(scores.kl) | torch.isnan(scores.bypass)),
    ]
    for reason, hit in filters:
        reasons[hit.numpy() & (reasons == "")] = reason
    counts = {
        "candidates": n_pos * n_layers,
        **{reason: int((reasons == reason).sum()) for reason, _ in filters},
    }
    counts["left"] = int((reasons == "").sum())
    if counts["left"] == 0:
        shown = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise SelectionError(
            f"no candidate direction passes the filters ({shown}); there is no single refusal direction here, "
            "or the filters ask too much of so small a model: loosen them (--max-kl, --min-induce)"
        )
    bypass = np.where(reasons == "", scores.bypass.numpy(), np.inf)
    row, layer = np.unravel_index(int(bypass.argmin()), bypass.shape)
    return Selection(int(row) - n_pos, int(layer), counts, reasons)


@dataclass(frozen=True, eq=False)
class RefusalDirection:
    """What `find_refusal_direction` found: the direction, its scores and how it was chosen."""

    direction: Direction
    candidates: Float[Tensor, "n_pos layer d_model"]
    scores: CandidateScores
    selection: Selection
    tokens: RefusalTokens

    def __repr__(self) -> str:
        p, layer = self.selection.index
        return (
            f"RefusalDirection(position {self.selection.position}, layer {layer}: bypass {self.scores.bypass[p, layer]:.2f}, "
            f"induce {self.scores.induce[p, layer]:.2f}, KL {self.scores.kl[p, layer]:.3f}; {self.selection.counts})"
        )


def find_refusal_direction(
    model: Model,
    harmful_train: PromptSet,
    harmless_train: PromptSet,
    harmful_val: PromptSet,
    harmless_val: PromptSet,
    tokens: RefusalTokens,
    *,
    rule: SelectionRule | None = None,
    complete: bool = False,
    progress: bool = True,
) -> RefusalDirection:
    """Candidates from the training prompts, scores on the validation prompts, the source's selection.

    Raises UserError for an empty set and SelectionError when nothing passes the filters.
    """
    for prompts in (harmful_train, harmless_train, harmful_val, harmless_val):
        if len(prompts) == 0:
            raise UserError(f"prompt set {prompts.name!r} is empty; give more prompts")
    candidates = candidate_directions(model, harmful_train, harmless_train, progress=progress)
    scores = score_candidates(
        model,
        candidates,
        harmful_val,
        harmless_val,
        tokens.ids,
        rule=rule,
        complete=complete,
        progress=progress,
    )
    chosen = select(scores, rule)
    vector = candidates[chosen.index]
    direction = Direction(vector, str(Site(chosen.layer, "resid_pre")), chosen.position)
    return RefusalDirection(direction, candidates, scores, chosen, tokens)
