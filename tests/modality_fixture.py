"""A synthetic study of several modalities with planted numbers and hostile names, for the report alone."""

import dataclasses
from functools import cache
from typing import Any

import numpy as np
from study_fixture import HOSTILE, N_LAYERS, harmful, harmless, study_result

from interp.data.thumbnails import Preview
from interp.evals.jailbreak import compare
from interp.evals.statistics import Interval, wilson
from interp.evals.verdicts import Outcome
from interp.modality_results import ModalityResult, ModalityStudy, Transfer
from interp.results import StudyResult

MODALITIES = ("text", "image", "audio", "<script>alert('$x_1$')</script> and more")
DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
TONE = "UklGRigAAABXQVZFZm10IBAAAAABAAEAgD4AAAB9AAACABAAZGF0YQQAAAAAAAEA"


def row(site: str, layer: int, measure: str, of: str, value: float, **more: Any) -> dict[str, Any]:
    nan = float("nan")
    null = {"null_low": nan, "null_high": nan, "ceiling": nan}
    return {"site": site, "layer": layer, "stream": "resid_post", "measure": measure, "of": of, "value": value,
            "low": value - 0.05, "high": value + 0.05, "n": 40, **null, **more}  # fmt: skip


def towers(modality: str) -> list[tuple[str, int]]:
    """Towers of a modality with their layers."""
    seen = {
        "image": [("vision", 6), ("vision projector", 1)],
        "audio": [("audio", 4), ("audio projector", 1)],
    }
    return [*seen.get(modality, []), ("decoder", N_LAYERS)]


@cache
def multimodal_result(n_tuned: int = 2, n_modalities: int = 2) -> StudyResult:
    """The study of `study_fixture` with modalities: a frozen encoder, a decoder that moves from layer 7 on."""
    result, names = study_result(n_tuned), MODALITIES[:n_modalities]
    checkpoints = [result.aligned, *(tuned.name for tuned in result.tuned)]
    found = []
    for i, name in enumerate(checkpoints):
        behaviour = {
            m: {"harmful": harmful(name, min(180, 4 + 20 * j + 50 * i)), "harmless": harmless(name, 3 + j)}
            for j, m in enumerate(names)
        }
        first = behaviour["text"]
        refused = {
            m: {kind: compare(behaviour[m][kind], first[kind], Outcome.REFUSED) for kind in first}
            for m in names[1:]
        }
        effects = [
            Transfer(edit, kind, of, on, Interval(1.5, 1.0, 2.0, 40), wilson((37 * j + 11 * i) % 200, 200))
            for on in names
            for j, (edit, kind, of) in enumerate(
                [("none", "harmful", ""), ("none", "harmless", "")]
                + [
                    (edit, kind, of)
                    for of in (*names, "random", "shuffled")
                    for edit, kind in (("ablated", "harmful"), ("added", "harmless"), ("added", "harmful"))
                ]
            )
        ]
        found.append(ModalityResult(name, behaviour, refused, tuple(effects)))
    drift, recognition, gap = [], [], []
    for modality in names:
        for tower, layers in towers(modality):
            where = {"modality": modality, "tower": tower}
            for layer in range(layers):
                site = f"{tower}.{layer}"
                moved = 0.4 * max(0, layer - 6) / N_LAYERS if tower == "decoder" else 0.0
                for name in checkpoints[1:]:
                    for measure, of, value in (
                        ("relative change", "harmful", moved), ("CKA", "", 1 - moved), ("subspace overlap", "", 1 - moved),
                        ("gap along refusal", "aligned", 3.0), ("gap along refusal", "tuned", 3.0 - 8 * moved),
                    ):  # fmt: skip
                        drift.append(row(site, layer, measure, of, value, checkpoint=name, **where))
                for name in ("aligned", *checkpoints[1:]):
                    recognition.append(
                        row(site, layer, "AUROC", name, 0.9, null_low=0.4, null_high=0.6, **where)
                    )
    for name in checkpoints:
        for second in names[1:]:
            for layer in range(N_LAYERS):
                where = {"checkpoint": name, "first": "text", "second": second}
                for measure, value in (
                    ("distance", 1.0 + layer),
                    ("AUROC", 0.9),
                    ("CKA", 0.5),
                    ("cosine", 0.3),
                ):
                    gap.append(
                        row(
                            f"resid_post.{layer}",
                            layer,
                            measure,
                            "",
                            value,
                            null_low=0.0,
                            null_high=0.2,
                            **where,
                        )
                    )
                gap.append(
                    row(f"resid_post.{layer}", layer, "cosine of halves", "", 0.3, ceiling=0.8, **where)
                )
    study = ModalityStudy(
        names=names,
        media={m: tuple(k for k in ("image", "audio") if k == m) for m in names},
        paired=True,
        n_requests={"harmful": 200, "harmless": 210},
        layer=6,
        checkpoints=tuple(found),
        gap=tuple(gap),
        drift=tuple(drift),
        recognition=tuple(recognition),
    )
    hostile = HOSTILE[0] + '.png" onerror="alert(1)'
    media = (
        Preview("image", hostile, f"data:image/png;base64,{DOT}"),
        Preview("audio", hostile, f"data:audio/wav;base64,{TONE}"),
        Preview("note", hostile),
    )
    tuned = tuple(
        dataclasses.replace(
            t, examples=tuple(dataclasses.replace(e, modality=names[-1], media=media) for e in t.examples)
        )
        for t in result.tuned
    )
    assert np.isfinite([r["value"] for r in gap]).all()
    return dataclasses.replace(result, tuned=tuned, modalities=study)
