"""The numbers behind the figures of modalities: behaviour, transfer, the gap and the towers, as tables of the report."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from interp.evals.statistics import Interval
from interp.evals.verdicts import Outcome
from interp.modality_results import ModalityStudy
from interp.report.tables import Cell, Points, PValue, Table, difference

_GAP = ("distance", "AUROC", "CKA", "cosine")
_DRIFT = (("relative change", "harmful"), ("CKA", ""), ("subspace overlap", ""), ("gap along refusal", "aligned"),
          ("gap along refusal", "tuned"))  # fmt: skip


def modality_tables(study: ModalityStudy) -> list[Table]:
    """All tables of a study's modalities."""
    return [_behaviour(study), _transfer(study), _gap(study), _towers(study)]


def _behaviour(study: ModalityStudy) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for found in study.checkpoints:
        for modality in study.names:
            kinds = found.behaviour[modality]
            compared: list[Cell] = [None] * 4
            if modality in found.refused:
                tests = (found.refused[modality][kind] for kind in ("harmful", "harmless"))
                compared = [
                    cell for test in tests for cell in (Points(difference(test)), PValue(test.p_value))
                ]
            harmful = kinds["harmful"]
            rows.append(
                (
                    found.name,
                    modality,
                    harmful.rate(Outcome.REFUSED),
                    harmful.jsr,
                    kinds["harmless"].over_refusal,
                    *compared,
                )
            )
    return Table(
        "modality_behaviour",
        "Behaviour by modality, in % of the requests asked with Wilson 95 % intervals; Δ is the paired difference in refusals to the same "
        f"requests as {study.reference}, in percentage points with bootstrap 95 % intervals, and exact McNemar p",
        ("checkpoint", "modality", "refused (harmful)", "JSR", "over-refusal", "Δ refused", "p (Δ refused)", "Δ over-refusal",
         "p (Δ over-refusal)"),
        tuple(rows),
    )  # fmt: skip


def _transfer(study: ModalityStudy) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (found.name, effect.edit, effect.of or "–", effect.on, effect.kind, effect.score, effect.refused)
        for found in study.checkpoints
        for effect in found.transfer
    ]
    return Table(
        "modality_transfer",
        f"Transfer: refusal score (log-odds at the last prompt token, mean with 95 % interval) of requests with a direction ablated "
        f"everywhere or added at the input of layer {study.layer}, and the share that is more likely refused than not (%, Wilson)",
        ("checkpoint", "edit", "direction from", "requests in", "requests", "refusal score", "refused"),
        tuple(rows),
    )


def _gap(study: ModalityStudy) -> Table:
    keys = list(dict.fromkeys((row["checkpoint"], row["second"], row["layer"]) for row in study.gap))
    found = {(row["checkpoint"], row["second"], row["layer"], row["measure"]): row for row in study.gap}
    rows = tuple((*key, *(_interval(found.get((*key, measure))) for measure in _GAP)) for key in keys)
    return Table(
        "modality_gap",
        f"Gap to {study.reference} by layer, the same requests: distance of means in spreads, AUROC of a probe that tells the modalities "
        "apart, CKA, and cosine of the harmful − harmless directions, with 95 % intervals",
        ("checkpoint", "modality", "layer", *_GAP),
        rows,
    )


def _towers(study: ModalityStudy) -> Table:
    keys = list(dict.fromkeys((row["checkpoint"], row["modality"], row["site"]) for row in study.drift))
    drift = {
        (row["checkpoint"], row["modality"], row["site"], row["measure"], row["of"]): row
        for row in study.drift
    }
    probes = {
        (row["modality"], row["site"], row["of"]): row
        for row in study.recognition
        if row["measure"] == "AUROC"
    }
    rows: Sequence[tuple[Cell, ...]] = [
        (
            name, modality, site,
            *(_interval(drift.get((name, modality, site, *measure))) for measure in _DRIFT),
            _interval(probes.get((modality, site, "aligned"))),
            _interval(probes.get((modality, site, name))),
        )
        for name, modality, site in keys
    ]  # fmt: skip
    return Table(
        "modality_towers",
        "Encoder, projector and decoder: relative change and CKA with the aligned model, overlap of leading principal components, gap between "
        "harmful and harmless along the aligned model's direction of the site (SD), and AUROC of a harm probe, with 95 % intervals",
        ("checkpoint", "modality", "site", "change, harmful", "CKA", "subspace overlap", "gap, aligned", "gap, tuned", "probe, aligned",
         "probe, tuned"),
        tuple(rows),
    )  # fmt: skip


def _interval(row: Mapping[str, Any] | None) -> Interval | None:
    """The estimate of a row; None where it was not measured."""
    if row is None or math.isnan(row["value"]):
        return None
    return Interval(row["value"], row["low"], row["high"], row["n"])
