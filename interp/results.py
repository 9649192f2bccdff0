"""What does a refusal-geometry study find? The record the pipeline fills and the report draws.

A :class:`StudyResult` describes one aligned checkpoint; each :class:`TunedResult` in it one fine-tuned checkpoint
beside it. Both are frozen, hold NumPy arrays and evaluation results only, and never see a model. ``to_store`` and
``from_store`` write and read them without loss: ``study.json`` for everything with a name, ``study.safetensors``
for the arrays, bit for bit.

Layers are 0-based. Projections are in units of the residual stream (dimensionless activations).
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float
from pydantic import ConfigDict, TypeAdapter
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from interp.data.thumbnails import Preview
from interp.errors import ResultError
from interp.evals.jailbreak import EvalResult, PairedTest, compare
from interp.evals.statistics import Interval
from interp.evals.verdicts import Outcome
from interp.modality_results import ModalityStudy

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

FORMAT = 1
_JSON = "study.json"
_ARRAYS = "study.safetensors"
_CONFIG = ConfigDict(arbitrary_types_allowed=True)

Arm = Literal["none", "direction", "random", "shuffled"]
ARMS: tuple[Arm, ...] = ("none", "direction", "random", "shuffled")
"""Arms of the causal test: no edit, the refusal direction, a random direction of equal norm, and the mean
difference under shuffled labels, brought to equal norm."""


@dataclass(frozen=True, eq=False)
class Band:
    """One estimate a layer with pointwise 95 % intervals.

    Args:
        value, low, high: estimate and limits per layer; NaN where not computed.
    """

    value: Float[np.ndarray, " layer"]
    low: Float[np.ndarray, " layer"]
    high: Float[np.ndarray, " layer"]

    __pydantic_config__ = _CONFIG

    def __post_init__(self) -> None:
        _require_shape("Band.low", self.low, self.value.shape)
        _require_shape("Band.high", self.high, self.value.shape)


@dataclass(frozen=True, eq=False)
class Selection:
    """The candidate direction taken, and why the others were not (METHODS §0).

    Args:
        position: selected end-of-instruction position, negative (−1 is the last prompt token).
        layer: selected layer; the direction is read from its ``resid_pre``.
        bypass, induce, kl: the three scores of the selected candidate (log-odds, log-odds, nats).
        counts: candidates by fate, in the order the filters apply, e.g.
            ``{"candidates": 60, "late layer": 15, "induce": 12, "KL": 9, "NaN": 0, "left": 24}``.
        scores: ``"bypass"``, ``"induce"`` and ``"kl"`` per candidate; row 0 is the earliest position, the last row
            position −1. NaN where a score was not computed because an earlier filter had dropped the candidate.
        filtered: per candidate (same rows) the reason it was dropped, or ``""``.
    """

    position: int
    layer: int
    bypass: float
    induce: float
    kl: float
    counts: Mapping[str, int]
    scores: Mapping[str, Float[np.ndarray, "position layer"]]
    filtered: tuple[tuple[str, ...], ...]

    __pydantic_config__ = _CONFIG

    def __post_init__(self) -> None:
        if set(self.scores) != {"bypass", "induce", "kl"}:
            raise ResultError(f"Selection.scores: has {sorted(self.scores)}; give bypass, induce and kl")
        shape = (len(self.filtered), len(self.filtered[0]) if self.filtered else 0)
        for name, grid in self.scores.items():
            _require_shape(f"Selection.scores[{name!r}]", grid, shape)
        if not (-shape[0] <= self.position < 0 <= self.layer < shape[1]):
            raise ResultError(
                f"Selection: position {self.position}, layer {self.layer} is outside the grid of {shape[0]} "
                f"positions and {shape[1]} layers; positions count from −1 backwards"
            )


@dataclass(frozen=True, eq=False)
class Pca:
    """Plane of the two leading principal components of final-token activations at one layer.

    Args:
        layer: layer whose ``resid_post`` is shown.
        coords: ``"aligned_harmful"`` and ``"aligned_harmless"``: coordinates of each prompt in that plane.
        explained: share of the variance of the fitted activations on each of the two components, 0–1.
        fitted_on: in words, whose activations the plane was fitted on.
    """

    layer: int
    coords: Mapping[str, Float[np.ndarray, "prompt 2"]]
    explained: tuple[float, float]
    fitted_on: str

    __pydantic_config__ = _CONFIG


@dataclass(frozen=True)
class Example:
    """One prompt with both models' answers, as they came.

    Args:
        prompt: the request.
        aligned, tuned: the completions, unescaped.
        aligned_outcome, tuned_outcome: the judge's verdicts on them.
        modality: in which it was asked, "" where all are text. media: small pictures and sounds of what is attached.
    """

    prompt: str
    aligned: str
    tuned: str
    aligned_outcome: Outcome
    tuned_outcome: Outcome
    modality: str = ""
    media: tuple[Preview, ...] = ()


@dataclass(frozen=True, eq=False)
class TunedResult:
    """One fine-tuned checkpoint beside the aligned one, on the same prompts.

    Args:
        name: the checkpoint as the user wrote it.
        same_weights: it is the aligned checkpoint itself (every difference must be zero).
        harmful, harmless: behaviour on the harmful and harmless test prompts.
        vs_aligned: paired test of complied-harmful on the harmful prompts, tuned − aligned.
        over_refusal_vs_aligned: paired test of refused on the harmless prompts, tuned − aligned.
        cosine: cosine of the aligned and the tuned mean-difference direction, selected position, per layer.
        norm_ratio: norm of the tuned direction over the norm of the aligned one, per layer.
        projection: keys ``aligned_harmful, aligned_harmless, tuned_harmful, tuned_harmless``: projection of
            ``resid_post`` at the last prompt token onto the *aligned* unit direction of the layer, one column a prompt.
            Columns follow ``StudyResult.projected``.
        lost_at: first layer with at least half of the largest relative loss of projection, of those where the aligned
            projections are apart (`methods/comparison.py`); None when no loss is found.
        shift: mean paired shift (tuned − aligned) of the harmful prompts' projection, with its interval.
        addition: per arm, behaviour on the harmful test prompts with that vector added in the tuned model.
        addition_harmless: the same on the harmless test prompts: a direction that restores refusal of harm by making the
            model refuse everything is no repair.
        kl: KL(aligned ‖ tuned) on benign answers, nats a token.
        perplexity: ``"aligned"`` and ``"tuned"``: perplexity of each on the same benign answers.
        coords: ``"tuned_harmful"`` and ``"tuned_harmless"``: coordinates in the plane of ``StudyResult.pca``.
        examples: prompts with both answers, to read.
    """

    name: str
    same_weights: bool
    harmful: EvalResult
    harmless: EvalResult
    vs_aligned: PairedTest
    over_refusal_vs_aligned: PairedTest
    cosine: Float[np.ndarray, " layer"]
    norm_ratio: Float[np.ndarray, " layer"]
    projection: Mapping[str, Float[np.ndarray, "layer prompt"]]
    lost_at: int | None
    shift: Band
    addition: Mapping[Arm, EvalResult]
    addition_harmless: Mapping[Arm, EvalResult]
    kl: Interval
    perplexity: Mapping[Literal["aligned", "tuned"], Interval]
    coords: Mapping[str, Float[np.ndarray, "prompt 2"]]
    examples: tuple[Example, ...]

    __pydantic_config__ = _CONFIG


@dataclass(frozen=True, eq=False)
class StudyResult:
    """One aligned checkpoint and what became of it in each fine-tuned one.

    Args:
        aligned: the aligned checkpoint as the user wrote it.
        tuned: the fine-tuned checkpoints, in the order given.
        n_layers: decoder layers.
        n_eoi: end-of-instruction positions of the chat template.
        eoi_tokens: their tokens, earliest first (as many as rows of the selection's grids).
        harmful, harmless: the aligned model's behaviour on the test prompts.
        refusal_tokens: tokens that open its refusals: ``{"id": int, "token": str, "share": float of refusals}``.
        selection: the direction taken.
        split_half: cosine between the directions of two halves of the prompts in the aligned model, per layer: the
            ceiling for any cosine with another model.
        projected: ``"harmful"`` and ``"harmless"``: prompt ids, the columns of every ``TunedResult.projection``.
        pca: the shared plane with the aligned model's coordinates.
        ablation: per arm, ``"harmful"`` and ``"harmless"``: the aligned model's behaviour with that vector projected out.
        command: the exact command line.
        hashes: content hashes by what they belong to.
        versions: versions by package.
        notes: limits of this run in plain sentences: what was excluded and how many, what was not measured.
        config: the full configuration, JSON values only.
        modalities: where prompts have images or audio attached, what each modality adds; all else is then of the reference modality.
    """

    aligned: str
    tuned: tuple[TunedResult, ...]
    n_layers: int
    n_eoi: int
    eoi_tokens: tuple[str, ...]
    harmful: EvalResult
    harmless: EvalResult
    refusal_tokens: tuple[Mapping[str, Any], ...]
    selection: Selection
    split_half: Band
    projected: Mapping[Literal["harmful", "harmless"], tuple[str, ...]]
    pca: Pca
    ablation: Mapping[Arm, Mapping[Literal["harmful", "harmless"], EvalResult]]
    command: str
    hashes: Mapping[str, str]
    versions: Mapping[str, str]
    notes: tuple[str, ...]
    config: Mapping[str, Any]
    modalities: ModalityStudy | None = None

    __pydantic_config__ = _CONFIG

    def __post_init__(self) -> None:
        layers = (self.n_layers,)
        _require_shape("StudyResult.split_half", self.split_half.value, layers)
        _require_shape(
            "Selection.scores", self.selection.scores["bypass"], (len(self.eoi_tokens), self.n_layers)
        )
        for tuned in self.tuned:
            for name in ("cosine", "norm_ratio"):
                _require_shape(f"{tuned.name}: {name}", getattr(tuned, name), layers)
            _require_shape(f"{tuned.name}: shift", tuned.shift.value, layers)
            for who in ("aligned", "tuned"):
                for kind, ids in self.projected.items():
                    grid = tuned.projection[f"{who}_{kind}"]
                    _require_shape(f"{tuned.name}: projection {who}_{kind}", grid, (self.n_layers, len(ids)))

    def to_store(self, directory: Path) -> None:
        """Write the result, without loss, into an existing directory as ``study.json`` and ``study.safetensors``.

        Args:
            directory: where; the caller makes the write atomic (``interp.store``).
        """
        arrays: dict[str, np.ndarray] = {}
        body = {"format": FORMAT, "study": _split(self, "study", arrays)}
        save_file(arrays, directory / _ARRAYS)
        # ASCII keeps lone surrogates and control characters of model output intact.
        (directory / _JSON).write_text(json.dumps(body, indent=1, ensure_ascii=True), encoding="ascii")

    @classmethod
    def from_store(cls, directory: Path) -> "StudyResult":
        """Read what :meth:`to_store` wrote.

        Raises:
            ResultError: a file is missing, damaged or of another format.
        """
        try:
            body = json.loads((directory / _JSON).read_text(encoding="ascii"))
            arrays = load_file(directory / _ARRAYS)
            if body["format"] != FORMAT:
                raise ValueError(f"format {body['format']}, this version reads {FORMAT}")
            return TypeAdapter(cls).validate_python(_join(body["study"], arrays))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise ResultError(
                f"{directory}: no readable study result ({reason}); run the study again"
            ) from error

    def ablation_test(self, arm: Arm, baseline: Arm, kind: Literal["harmful", "harmless"]) -> PairedTest:
        """Paired test of an ablation arm against another in the aligned model: refusal, or correct benign answers."""
        outcome = Outcome.REFUSED if kind == "harmful" else Outcome.COMPLIED_BENIGN
        return compare(self.ablation[arm][kind], self.ablation[baseline][kind], outcome)

    def to_frame(self) -> "pd.DataFrame":
        """Every outcome count of both prompt sets: one row a checkpoint, set and outcome, with Wilson interval."""
        import pandas as pd

        rows = []
        checkpoints = [(self.aligned, "aligned", self.harmful, self.harmless)]
        checkpoints += [(tuned.name, "tuned", tuned.harmful, tuned.harmless) for tuned in self.tuned]
        for name, role, harmful, harmless in checkpoints:
            for kind, result in (("harmful", harmful), ("harmless", harmless)):
                for outcome in Outcome:
                    rate = result.rate(outcome)
                    rows.append(
                        {
                            "checkpoint": name,
                            "role": role,
                            "prompts": kind,
                            "outcome": outcome.value,
                            "count": rate.k,
                            "asked": rate.n,
                            "rate": rate.estimate,
                            "low": rate.low,
                            "high": rate.high,
                        }
                    )
        return pd.DataFrame(rows)

    def plot(self, figure: str = "behaviour") -> "Figure":
        """Draw one figure of the report by name (see ``interp.report.figures.FIGURES``)."""
        from interp.report.figures import draw

        return draw(self, figure)

    def _repr_html_(self) -> str:
        from interp.report.html import summary_html

        return summary_html(self)


def _split(value: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    """Replace every array in `value` by a reference to its name in `arrays`."""
    if isinstance(value, np.ndarray):
        # safetensors writes the buffer as it lies in memory, so a transposed view would come back scrambled.
        arrays[path] = np.ascontiguousarray(value)
        return {"$array": path}
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        return {name: _split(item, f"{path}.{name}", arrays) for name, item in fields.items()}
    if isinstance(value, Mapping):
        return {str(key): _split(item, f"{path}.{key}", arrays) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_split(item, f"{path}.{index}", arrays) for index, item in enumerate(value)]
    if isinstance(value, np.generic):
        return value.item()
    return value


def _join(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """Put the arrays back where :func:`_split` took them from."""
    if isinstance(value, dict):
        if set(value) == {"$array"}:
            return arrays[value["$array"]]
        return {key: _join(item, arrays) for key, item in value.items()}
    if isinstance(value, list):
        return [_join(item, arrays) for item in value]
    return value


def _require_shape(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ResultError(f"{name}: shape {array.shape}, expected {shape}")
