"""The stages that prompts with images or audio add to a study: the same requests in every modality, in every checkpoint.

1. Behaviour: the test requests are answered and judged in each modality.
2. Directions: mean differences at the selected place, fitted in each modality on the training requests that the aligned model decides
   rightly in the reference; their transfer (`methods/transfer.py`): a direction from one modality, its effect on another.
3. Gap: how far apart the same requests lie in two modalities, layer by layer (`methods/modality_gap.py`).
4. Drift and recognition: what fine-tuning changed in encoder, projector and decoder, and whether harm is still read off them
   (`methods/drift.py`, `methods/recognition.py`).

Activations are taken at the last token in the decoder, as the mean over patches or frames in encoder and projector.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from interp.data.modalities import Modalities, request_of
from interp.data.prompts import Prompt, PromptSet
from interp.data.thumbnails import Gallery
from interp.errors import UserError
from interp.evals.jailbreak import EvalResult, compare
from interp.evals.statistics import Proportion
from interp.evals.verdicts import Outcome
from interp.geometry.directions import mean_difference, random_like, shuffled_difference, unit
from interp.methods.drift import activation_drift
from interp.methods.modality_gap import modality_gap
from interp.methods.recognition import recognise
from interp.methods.transfer import transfer
from interp.modality_results import ModalityResult, ModalityStudy, Transfer
from interp.models.activations import Activations
from interp.models.sites import DECODER, PROJECTOR, Site
from interp.results import Example
from interp.store import slugify
from interp.study.examples import examples
from interp.study.packing import pack_interval, unpack_interval
from interp.study.settings import KINDS, Kind
from interp.study.workbench import Workbench

ENCODERS = {"image": "vision", "audio": "audio"}
N_NULL = 5  # draws of every null a site: a band to compare with, no p-value
RANK = 10  # principal components whose spans are compared


class ModalityStages:
    """The stages of every modality; `start` once the direction is selected, `measure` for each checkpoint, then `result`."""

    def __init__(self, bench: Workbench, modalities: Modalities) -> None:
        self.bench, self.run, self.modalities = bench, bench.run, modalities
        self.parts, self.reference = modalities.parts, modalities.reference
        self.names = tuple(self.parts)
        self.done: list[ModalityResult] = []
        self.wheres: list[str] = []
        self.skipped: list[str] = []

    def start(self, found: Mapping[str, Any]) -> None:
        """Take what was selected on the aligned model, as `Stages.select` gives it."""
        self.found = found
        self.place = Site(found["layer"], "resid_pre")

    # --- with a model --------------------------------------------------------------------------------------------------

    def measure(self, where: str, name: str, behaviour: Mapping[Kind, EvalResult]) -> None:
        """All that needs the checkpoint `name`, whose behaviour in the reference is known; `where` its steps are kept."""
        answered = {self.reference: dict(behaviour)}
        for modality in self.names[1:]:
            step = self.behaviour_step(where, modality)
            answered[modality] = self.bench.evaluate(step, name, self.parts[modality], {})
        for modality in self.names:
            self.activations(where, name, modality)
        moved = self.run.step(f"{where}/transfer.json", lambda: self.transferred(name))
        self.wheres.append(where)
        self.done.append(
            ModalityResult(
                name=name,
                behaviour=answered,
                refused=self.compared(answered),
                transfer=tuple(_unpack(row) for row in moved),
            )
        )

    def behaviour_step(self, where: str, modality: str) -> str:
        """The step that holds the answers in a modality."""
        return (
            f"{where}/behaviour.json"
            if modality == self.reference
            else f"{self.at(where, modality)}/behaviour.json"
        )

    def at(self, where: str, modality: str) -> str:
        """The directory of a modality's steps; the number tells names apart that read alike as file names."""
        return f"{where}/{self.names.index(modality)}-{slugify(modality)}"

    def activations(self, where: str, name: str, modality: str) -> dict[str, Tensor]:
        """Values (site, prompt, width) of the modality's prompts by what, part and kind, as `decoder test harmful`."""

        def compute() -> dict[str, Tensor]:
            model, found = self.bench.model(name), dict[str, Tensor]()
            encoders = [ENCODERS[kind] for kind in self.modalities.media(modality)]
            for kind in KINDS:
                for part in ("train", "test"):
                    prompts = (
                        self.kept(modality, kind) if part == "train" else self.parts[modality][f"{kind}_test"]
                    )
                    found[f"decoder {part} {kind}"] = self.bench.capture(model, prompts, "resid_post", "last")
                    for encoder in encoders:
                        for stream in ("resid_post", PROJECTOR):
                            values = self.bench.capture(model, prompts, f"{encoder}.{stream}", "mean")
                            found[f"{_tower(encoder, stream)} {part} {kind}"] = values
                    if part == "train":
                        found[f"place {part} {kind}"] = self.bench.capture(
                            model, prompts, self.place, self.found["position"]
                        )
            return found

        return self.run.step(f"{self.at(where, modality)}/activations.safetensors", compute)

    def kept(self, modality: str, kind: Kind) -> PromptSet:
        """Training requests that the aligned model decides rightly in the reference; all of them where requests are not shared."""
        prompts = self.parts[modality][f"{kind}_train"]
        kept = set(self.found["kept"][f"{kind}_train"])
        reference = self.parts[self.reference][f"{kind}_train"]
        if modality == self.reference:
            return prompts.filter(lambda prompt: prompt.id in kept)
        if not self.modalities.paired:
            return prompts
        return prompts.take([i for i, prompt in enumerate(reference) if prompt.id in kept])

    def directions(self) -> dict[str, Tensor]:
        """The aligned model's direction of each modality, then the two controls, at the norm of the reference's."""
        found: dict[str, Tensor] = {}
        for modality in self.names:
            values = self.activations("aligned", self.bench.config.aligned, modality)
            harmful, harmless = (values[f"place train {kind}"] for kind in KINDS)
            found[modality] = mean_difference(harmful, harmless)[0]
            if modality == self.reference:
                null = shuffled_difference(harmful, harmless, self.bench.config.seed + 2000)[0]
        norm, seed = found[self.reference].norm(), self.bench.config.seed
        return found | {
            "random": random_like(found[self.reference], seed + 1000),
            "shuffled": unit(null) * norm,
        }

    def transferred(self, name: str) -> list[dict[str, Any]]:
        found = transfer(
            self.bench.model(name),
            self.directions(),
            self.place.layer,
            {m: {kind: list(self.parts[m][f"{kind}_test"]) for kind in KINDS} for m in self.names},
            [token["id"] for token in self.found["tokens"]],
            batch_size=self.bench.config.batch_size,
            progress=self.bench.progress,
        )
        return [asdict(effect) | {"score": pack_interval(effect.score)} for effect in found]

    # --- without one ---------------------------------------------------------------------------------------------------

    def compared(self, answered: Mapping[str, Mapping[Kind, EvalResult]]) -> dict[str, dict[Kind, Any]]:
        """Refusals of the same requests, each modality against the reference."""
        if not self.modalities.paired:
            return {}
        named = {
            modality: {kind: self.by_request(modality, kind, results[kind]) for kind in KINDS}
            for modality, results in answered.items()
        }
        first = named[self.reference]
        return {
            modality: {kind: compare(named[modality][kind], first[kind], Outcome.REFUSED) for kind in KINDS}
            for modality in self.names[1:]
        }

    def by_request(self, modality: str, kind: Kind, result: EvalResult) -> EvalResult:
        """The result with requests in place of prompt ids, in the groups of the reference."""
        keys = {prompt.id: request_of(prompt) for prompt in self.parts[modality][f"{kind}_test"]}
        reference = self.parts[self.reference][f"{kind}_test"]
        groups = {request_of(prompt): prompt.group for prompt in reference if prompt.group is not None}
        verdicts = tuple(replace(v, prompt_id=keys[v.prompt_id]) for v in result.verdicts)
        return replace(result, verdicts=verdicts, groups=groups, categories={})

    def result(self) -> ModalityStudy:
        """Everything, once all checkpoints are measured."""
        found = self.run.step("modalities.json", self.tables)
        self.skipped = found.pop("skipped")
        tables = {name: tuple(_with_nan(row) for row in rows) for name, rows in found.items()}
        return ModalityStudy(
            names=self.names,
            media={modality: self.modalities.media(modality) for modality in self.names},
            paired=self.modalities.paired,
            n_requests={kind: len(self.parts[self.reference][f"{kind}_test"]) for kind in KINDS},
            layer=self.place.layer,
            checkpoints=tuple(self.done),
            **tables,
        )

    def tables(self) -> dict[str, Any]:
        """Rows of the tables by site; what cannot be measured on these prompts is said in `skipped`."""
        skipped: list[str] = []

        def attempt(
            what: str, names: dict[str, str], measure: Callable[[], pd.DataFrame]
        ) -> list[dict[str, Any]]:
            try:
                return [_without_nan(row) for row in measure().assign(**names).to_dict("records")]
            except UserError as error:
                skipped.append(f"{what} was not measured: {error}.")
                return []

        gap, drift, recognition = [], [], []
        for i, (where, found) in enumerate(zip(self.wheres, self.done, strict=True)):
            for modality in self.names[1:] if self.modalities.paired else ():
                what = f"The gap between {self.reference} and {modality} in {found.name}"
                names = {"checkpoint": found.name, "first": self.reference, "second": modality}
                gap += attempt(what, names, partial(self.gap, where, modality))
            for modality, tower in self.towers() if i else ():
                what = f"The drift of the {tower} on {modality} prompts in {found.name}"
                names = {"checkpoint": found.name, "modality": modality, "tower": tower}
                drift += attempt(what, names, partial(self.drift, where, modality, tower))
        for modality, tower in self.towers():
            what = f"The recognition of harm by the {tower} on {modality} prompts"
            names = {"modality": modality, "tower": tower}
            recognition += attempt(what, names, partial(self.recognition, modality, tower))
        return {"gap": gap, "drift": drift, "recognition": recognition, "skipped": skipped}

    def towers(self) -> list[tuple[str, str]]:
        """Every modality with each of the towers that its prompts pass through, in that order."""
        found = []
        for modality in self.names:
            encoders = [ENCODERS[kind] for kind in self.modalities.media(modality)]
            passed = [_tower(encoder, stream) for encoder in encoders for stream in ("resid_post", PROJECTOR)]
            found += [(modality, tower) for tower in (*passed, DECODER)]
        return found

    def gap(self, where: str, modality: str) -> pd.DataFrame:
        first, second = (self.stored(where, name, DECODER) for name in (self.reference, modality))
        return modality_gap(
            first,
            second,
            names=(self.reference, modality),
            harmful=self.labels(modality),
            groups=self.groups(self.reference),
            n_null=N_NULL,
            seed=self.bench.config.seed,
        ).to_frame()

    def drift(self, where: str, modality: str, tower: str) -> pd.DataFrame:
        aligned = self.stored("aligned", modality, tower)
        values = self.load("aligned", modality)
        n, width = aligned.values.shape[1:]
        return activation_drift(
            aligned,
            self.stored(where, modality, tower),
            self.labels(modality),
            self.groups(modality),
            fit=(values[f"{tower} train harmful"], values[f"{tower} train harmless"]),
            rank=max(1, min(RANK, n // 3, width)),
            seed=self.bench.config.seed,
        ).to_frame()

    def recognition(self, modality: str, tower: str) -> pd.DataFrame:
        tuned = {
            found.name: self.stored(where, modality, tower)
            for where, found in list(zip(self.wheres, self.done, strict=True))[1:]
        }
        return recognise(
            self.stored("aligned", modality, tower),
            tuned,
            self.labels(modality),
            self.groups(modality),
            n_null=N_NULL,
            seed=self.bench.config.seed,
        ).to_frame()

    def load(self, where: str, modality: str) -> dict[str, Tensor]:
        """Activations that `measure` has stored."""
        return self.run.load_arrays(f"{self.at(where, modality)}/activations.safetensors")

    def stored(self, where: str, modality: str, tower: str) -> Activations:
        """The test prompts' values, harmful before harmless."""
        found = self.load(where, modality)
        values = torch.cat([found[f"{tower} test {kind}"] for kind in KINDS], dim=1)
        encoder, _, projector = tower.partition(" ")
        sites = [Site(i, projector or "resid_post", encoder) for i in range(len(values))]
        prompts = self.tested(modality)
        rule = "last" if tower == DECODER else "mean"
        ids = tuple(prompt.id for prompt in prompts)
        return Activations(values, torch.arange(len(prompts) + 1), tuple(sites), ids, rule, where)

    def tested(self, modality: str) -> list[Prompt]:
        return [prompt for kind in KINDS for prompt in self.parts[modality][f"{kind}_test"]]

    def labels(self, modality: str) -> list[bool]:
        return [kind == "harmful" for kind in KINDS for _ in self.parts[modality][f"{kind}_test"]]

    def groups(self, modality: str) -> list[str]:
        return [prompt.group or request_of(prompt) for prompt in self.tested(modality)]

    def examples(self, where: str, most: int, gallery: Gallery) -> tuple[Example, ...]:
        """Answers to read, as many in each modality."""
        found: list[Example] = []
        for modality in self.names:
            steps = self.behaviour_step("aligned", modality), self.behaviour_step(where, modality)
            each = max(2, most // len(self.names))
            found += examples(self.run, self.parts[modality], steps, each, gallery, modality)
        return tuple(found)

    def notes(self) -> list[str]:
        """What a reader must know of how modalities were compared."""
        listed = ", ".join(self.names)
        lines = [
            f"Modalities: {listed}. Everything outside of the section about them is about {self.reference} prompts.",
            "Refusal under a direction of another modality is a score at the last prompt token, not an answer; the direction of every "
            f"modality was fitted at the selected place of {self.reference} prompts.",
        ]
        if self.modalities.left_out:
            lines.append(
                f"{self.modalities.left_out} prompts without a partner in every modality were left out; partners share a `pair` column, "
                "or an id but for its modality."
            )
        if len(self.names) > 1 and not self.modalities.paired:
            lines.append(
                "Modalities share no requests, so differences between them are also differences of requests and no gap was measured."
            )
        return lines + self.skipped


def _tower(encoder: str, stream: str) -> str:
    return f"{encoder} {PROJECTOR}" if stream == PROJECTOR else encoder


def _without_nan(row: Mapping[Any, Any]) -> dict[str, Any]:
    """JSON has no NaN."""
    return {key: None if isinstance(v, float) and math.isnan(v) else v for key, v in row.items()}


def _with_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: math.nan if value is None else value for key, value in row.items()}


def _unpack(row: Mapping[str, Any]) -> Transfer:
    values: dict[str, Any] = dict(row)
    values["score"], values["refused"] = unpack_interval(row["score"]), Proportion(**row["refused"])
    return Transfer(**values)
