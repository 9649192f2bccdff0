"""The stages of one study, each a step of its run: what was done before a kill is read back, not done again."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from interp.data.modalities import Modalities
from interp.data.prompts import Prompt, PromptSet
from interp.data.thumbnails import Gallery
from interp.errors import UserError
from interp.evals.jailbreak import EvalResult, compare
from interp.evals.utility import compare_utility
from interp.evals.verdicts import Outcome
from interp.geometry.directions import (
    Direction,
    mean_difference,
    shuffled_difference,
    split_half_cosine,
    unit,
)
from interp.geometry.subspaces import Subspace, pca
from interp.methods.comparison import compare_directions, compare_projections
from interp.methods.refusal import (
    candidate_directions,
    keep_by_refusal,
    refusal_tokens,
    score_candidates,
    select,
)
from interp.models.hooks import Ablate, Add, Edits, everywhere
from interp.models.likelihood import response_log_probs, with_responses
from interp.models.sites import Site
from interp.results import ARMS, Arm, Band, Example, Pca, Selection, StudyResult, TunedResult
from interp.store import Run, versions
from interp.study.examples import examples
from interp.study.modality_stages import ModalityStages
from interp.study.packing import pack_interval, pack_log_probs, unpack_interval, unpack_log_probs
from interp.study.settings import KINDS, Kind, StudyConfig, make_judge
from interp.study.workbench import Workbench

N_TOKEN_PROMPTS = 64  # prompts of each kind whose answers tell what a refusal opens with
N_UTILITY = 64  # benign answers for KL and perplexity
N_EXAMPLES = 12  # pairs of answers to read a tuned checkpoint


class Stages:
    """The stages of one study, each a step of the run."""

    def __init__(
        self,
        config: StudyConfig,
        prompts: Mapping[str, PromptSet],
        modalities: Modalities | None,
        run: Run,
        fingerprints: Mapping[str, str],
        progress: bool,
    ) -> None:
        self.config, self.prompts, self.run, self.progress = config, prompts, run, progress
        self.fingerprints = fingerprints
        asked = [prompts] if modalities is None else modalities.parts.values()
        everything = [prompt for parts in asked for part in parts.values() for prompt in part]
        self.judge = make_judge(config, everything)
        self.bench = Workbench(config, run, self.judge, progress)
        self.model, self.capture, self.generate = self.bench.model, self.bench.capture, self.bench.generate
        self.modal = None if modalities is None else ModalityStages(self.bench, modalities)
        self.gallery = Gallery()

    def result(self, hashes: Mapping[str, str]) -> StudyResult:
        aligned = self.config.aligned
        self.behaviour = self.bench.evaluate("aligned/behaviour.json", aligned, self.prompts, {})
        self.found = self.run.step("aligned/selection.json", self.select)
        arrays = self.run.step("aligned/directions.safetensors", self.directions)
        place = self.found["position"] + self.found["n_eoi"], self.found["layer"]
        vectors = {"direction": arrays["candidates"][place], "shuffled": arrays["shuffled"]}
        direction = Direction(vectors["direction"], str(Site(place[1], "resid_pre")), self.found["position"])
        # the control seeds are fixed apart from the split's, so that a new split keeps its controls
        vectors["random"] = direction.random(self.config.seed + 1000).vector
        self.vectors = vectors
        self.base = self.activations("aligned", aligned)
        ablation = self.arms("aligned/ablation", aligned, self.ablate)
        if self.modal is not None:
            self.modal.start(self.found)
            self.modal.measure("aligned", aligned, self.behaviour)
        halves = split_half_cosine(
            self.base["harmful_at"], self.base["harmless_at"], seed=self.config.seed
        ).numpy()
        plane = pca(torch.cat([self.base[f"{kind}_test"][place[1]] for kind in KINDS]), 2)
        tuned = tuple(self.tuned(i, name, plane) for i, name in enumerate(self.config.tuned))
        scores = {name: arrays[name].numpy() for name in ("bypass", "induce", "kl")}
        modalities = None if self.modal is None else self.modal.result()
        return StudyResult(
            aligned=aligned,
            tuned=tuned,
            n_layers=self.found["n_layers"],
            n_eoi=self.found["n_eoi"],
            eoi_tokens=tuple(self.found["eoi_tokens"]),
            harmful=self.behaviour["harmful"],
            harmless=self.behaviour["harmless"],
            refusal_tokens=tuple(self.found["tokens"]),
            selection=Selection(
                position=self.found["position"],
                layer=self.found["layer"],
                counts=self.found["counts"],
                scores=scores,
                filtered=tuple(tuple(row) for row in self.found["reasons"]),
                **{name: float(grid[place]) for name, grid in scores.items()},
            ),
            split_half=Band(halves.mean(1), *np.quantile(halves, [0.025, 0.975], axis=1)),
            projected={kind: tuple(self.prompts[f"{kind}_test"].ids) for kind in KINDS},
            pca=Pca(
                layer=place[1],
                coords={f"aligned_{kind}": self.plane(plane, self.base, kind, place[1]) for kind in KINDS},
                explained=(float(plane.explained[0]), float(plane.explained[1])),
                fitted_on="the aligned model's harmful and harmless test prompts",
            ),
            ablation={arm: {kind: ablation[arm][kind] for kind in KINDS} for arm in ARMS},
            command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            hashes=dict(hashes),
            versions=versions(),
            notes=tuple(self.notes()),
            config=self.config.model_dump(mode="json"),
            modalities=modalities,
        )

    # --- aligned model -------------------------------------------------------------------------------------------------

    def select(self) -> dict[str, Any]:
        """Refusal tokens, the prompts kept, candidates, scores and the choice; tensors go beside as arrays."""
        model, rule = self.model(self.config.aligned), self.config.rule
        opening = {kind: self.prompts[f"{kind}_train"][:N_TOKEN_PROMPTS] for kind in KINDS}
        refused, completions = [], []
        for kind in KINDS:
            answers = self.generate(model, opening[kind])
            verdicts = self.judge.judge(list(opening[kind]), answers)
            refused += [verdict.outcome is Outcome.REFUSED for verdict in verdicts]
            completions += answers
        tokens = refusal_tokens(model, completions, refused)
        kept = {}
        for kind, is_refused in (("harmful", True), ("harmless", False)):
            for part in ("train", "val"):
                name = f"{kind}_{part}"
                kept[name], _ = keep_by_refusal(model, self.prompts[name], tokens.ids, refused=is_refused)
                if not len(kept[name]):
                    state = "refuses" if is_refused else "answers"
                    raise UserError(
                        f"{self.config.aligned} {state} none of the {len(self.prompts[name])} {name} prompts; is it aligned?"
                    )
        candidates = candidate_directions(
            model, kept["harmful_train"], kept["harmless_train"], progress=self.progress
        )
        scores = score_candidates(
            model,
            candidates,
            kept["harmful_val"],
            kept["harmless_val"],
            tokens.ids,
            rule=rule,
            progress=self.progress,
        )
        chosen = select(scores, rule)
        self.run.save_arrays(
            "aligned/candidates.safetensors",
            {
                "candidates": candidates.contiguous(),
                "bypass": scores.bypass,
                "induce": scores.induce,
                "kl": scores.kl,
            },
        )
        return {
            "position": chosen.position,
            "layer": chosen.layer,
            "counts": chosen.counts,
            "reasons": chosen.reasons.tolist(),
            "n_layers": model.n_layers,
            "n_eoi": model.n_eoi,
            "eoi_tokens": model.eoi_tokens,
            "tokens": [
                {"id": i, "token": token, "share": share}
                for i, token, share in zip(tokens.ids, tokens.tokens, tokens.share, strict=True)
            ],
            "kept": {name: part.ids for name, part in kept.items()},
        }

    def directions(self) -> dict[str, Tensor]:
        """The candidates with their scores, and the mean difference under shuffled labels at the selected place."""
        arrays = self.run.load_arrays("aligned/candidates.safetensors")
        place = self.found["position"] + self.found["n_eoi"], self.found["layer"]
        site, model = Site(self.found["layer"], "resid_pre"), self.model(self.config.aligned)
        rows = [
            self.capture(model, self.kept(f"{kind}_train"), site, self.found["position"]) for kind in KINDS
        ]
        null = shuffled_difference(rows[0], rows[1], seed=self.config.seed + 2000)[0]
        norm = arrays["candidates"][place].norm()
        return {**arrays, "shuffled": unit(null) * norm}

    def activations(self, where: str, name: str) -> dict[str, Tensor]:
        """resid_post of all layers: training prompts at the selected position and the last, test prompts at the last."""

        def compute() -> dict[str, Tensor]:
            model, found = self.model(name), dict[str, Tensor]()
            for kind in KINDS:
                train, test = self.kept(f"{kind}_train"), self.prompts[f"{kind}_test"]
                found[f"{kind}_at"] = self.capture(model, train, "resid_post", self.found["position"])
                found[f"{kind}_last"] = self.capture(model, train, "resid_post", "last")
                found[f"{kind}_test"] = self.capture(model, test, "resid_post", "last")
            return found

        return self.run.step(f"{where}/activations.safetensors", compute)

    def ablate(self, arm: Arm) -> Edits:
        return everywhere(Ablate(self.vectors[arm].float()), self.found["n_layers"])

    def add(self, arm: Arm) -> Edits:
        return {Site(self.found["layer"], "resid_pre"): Add(self.vectors[arm].float(), positions="prompt")}

    def arms(self, where: str, name: str, edits: Callable[[Arm], Edits]) -> dict[Arm, dict[Kind, EvalResult]]:
        """Behaviour under each arm's edit; the arm `none` is the behaviour already measured."""
        found = {"none": self.bench.evaluate(f"{Path(where).parent}/behaviour.json", name, self.prompts, {})}
        for arm in ARMS[1:]:
            found[arm] = self.bench.evaluate(f"{where}-{arm}.json", name, self.prompts, edits(arm))
        return cast(dict[Arm, dict[Kind, EvalResult]], found)

    # --- tuned models --------------------------------------------------------------------------------------------------

    def tuned(self, i: int, name: str, plane: Subspace) -> TunedResult:
        where, layer = f"tuned-{i}", self.found["layer"]
        behaviour = self.bench.evaluate(f"{where}/behaviour.json", name, self.prompts, {})
        found = self.activations(where, name)
        if found["harmful_at"].shape != self.base["harmful_at"].shape:
            layers, _, width = found["harmful_at"].shape
            raise UserError(
                f"{name} has {layers} layers of width {width}, {self.config.aligned} has {self.found['n_layers']} of "
                f"{self.base['harmful_at'].shape[-1]}; compare fine-tunes of one base"
            )
        moved = compare_directions(
            self.base["harmful_at"], self.base["harmless_at"], found["harmful_at"], found["harmless_at"]
        )
        shift = compare_projections(
            mean_difference(self.base["harmful_last"], self.base["harmless_last"]),
            self.base["harmful_test"],
            self.base["harmless_test"],
            found["harmful_test"],
            found["harmless_test"],
            clusters=self.behaviour["harmful"].clusters(),
        )
        addition = self.arms(f"{where}/addition", name, self.add)
        if self.modal is not None:
            self.modal.measure(where, name, behaviour)
        utility = self.run.step(f"{where}/utility.json", lambda: self.utility(name))
        return TunedResult(
            name=name,
            same_weights=self.fingerprints[name] == self.fingerprints[self.config.aligned],
            harmful=behaviour["harmful"],
            harmless=behaviour["harmless"],
            vs_aligned=compare(behaviour["harmful"], self.behaviour["harmful"], Outcome.COMPLIED_HARMFUL),
            over_refusal_vs_aligned=compare(
                behaviour["harmless"], self.behaviour["harmless"], Outcome.REFUSED
            ),
            cosine=moved.cosine,
            norm_ratio=moved.norm_ratio,
            projection={
                f"{who}_{kind}": getattr(shift, f"{who}_{kind}")
                for who in ("aligned", "tuned")
                for kind in KINDS
            },
            lost_at=shift.lost_at,
            shift=Band(shift.shift, shift.shift_low, shift.shift_high),
            addition={arm: addition[arm]["harmful"] for arm in ARMS},
            addition_harmless={arm: addition[arm]["harmless"] for arm in ARMS},
            kl=unpack_interval(utility["kl"]),
            perplexity={
                "aligned": unpack_interval(utility["aligned"]),
                "tuned": unpack_interval(utility["tuned"]),
            },
            coords={f"tuned_{kind}": self.plane(plane, found, kind, layer) for kind in KINDS},
            examples=self.examples(where),
        )

    def utility(self, name: str) -> dict[str, Any]:
        answered = self.utility_prompts()
        groups = [prompt.group or prompt.id for prompt in answered]
        # scratch: as large as tokens × vocabulary, needed by every tuned checkpoint, dropped when the study is done
        base = self.run.step(
            "scratch/likelihood.safetensors",
            lambda: pack_log_probs(response_log_probs(self.model(self.config.aligned), answered)),
        )
        found = compare_utility(
            unpack_log_probs(base), response_log_probs(self.model(name), answered), groups
        )
        intervals = {"kl": found.kl, "aligned": found.aligned_perplexity, "tuned": found.tuned_perplexity}
        return {name: pack_interval(interval) for name, interval in intervals.items()}

    def utility_prompts(self) -> list[Prompt]:
        """Benign test prompts with the reference answer where known, else the aligned model's own unless it refused."""
        refused = {
            verdict.prompt_id
            for verdict in self.behaviour["harmless"].verdicts
            if verdict.outcome is Outcome.REFUSED
        }
        test = [
            p
            for p in self.prompts["harmless_test"][:N_UTILITY]
            if (p.truth and p.truth.answer) or p.response or p.id not in refused
        ]
        own = {c["prompt_id"]: c["text"] for c in self.run.load_json("aligned/behaviour.json")["completions"]}
        answers = [(p.truth.answer if p.truth and p.truth.answer else p.response) or own[p.id] for p in test]
        pairs = [(prompt, answer) for prompt, answer in zip(test, answers, strict=True) if answer.strip()]
        if not pairs:
            raise UserError(f"{self.config.aligned} gave no benign answer to measure KL on")
        return with_responses([prompt for prompt, _ in pairs], [answer for _, answer in pairs])

    # --- shared --------------------------------------------------------------------------------------------------------

    def kept(self, name: str) -> PromptSet:
        """The prompts of a set on which the aligned model does what their label says."""
        ids = set(self.found["kept"][name])
        return self.prompts[name].filter(lambda prompt: prompt.id in ids)

    def plane(self, plane: Subspace, acts: Mapping[str, Tensor], kind: str, layer: int) -> np.ndarray:
        return plane.coordinates(acts[f"{kind}_test"][layer]).numpy()

    def examples(self, where: str) -> tuple[Example, ...]:
        """Answers of the aligned and of a tuned checkpoint, in every modality as many."""
        if self.modal is None:
            steps = "aligned/behaviour.json", f"{where}/behaviour.json"
            return tuple(examples(self.run, self.prompts, steps, N_EXAMPLES, self.gallery))
        return self.modal.examples(where, N_EXAMPLES, self.gallery)

    def notes(self) -> list[str]:
        kept = {name: (len(ids), len(self.prompts[name])) for name, ids in self.found["kept"].items()}
        dropped = ", ".join(f"{name.replace('_', ' ')} {n} of {of}" for name, (n, of) in kept.items())
        lines = [
            f"Answers were judged by {self.judge.name} (version {self.judge.version}).",
            "Prompts kept for fitting, because the aligned model refused the harmful and answered the harmless ones: "
            f"{dropped}. Test prompts were not filtered.",
            "Intervals are over prompts (clustered where prompts share a verb), not over training seeds: another "
            "fine-tune with the same data may differ.",
            "The direction was added with coefficient 1 at the input of its own layer, at the prompt's positions (at "
            "generated ones it would ask for a refusal's first word again and again); it was ablated at every block "
            "input, attention output and MLP output, at all positions.",
            f"KL and perplexity were measured on the first 16 tokens of {len(self.utility_prompts())} benign reference "
            "answers, or of the aligned model's own where no reference is known and it did not refuse.",
        ]
        lines += [
            f"{name} has the same weights as the aligned checkpoint: it is compared with itself."
            for name in self.config.tuned
            if self.fingerprints[name] == self.fingerprints[self.config.aligned]
        ]
        return lines + ([] if self.modal is None else self.modal.notes())
