"""A study of benign audio fine-tuning whose numbers are planted: what the figures, claims and sentences are made from, with a known truth."""

import numpy as np
import pandas as pd

from interp.benign_audio.grid import Dose, Grid
from interp.benign_audio.nearness import separations
from interp.benign_audio.study import LABELS, Study

UNITS = [(organism, seed) for organism in range(3) for seed in range(3)]
N_LAYERS = 12
WAYS_SHAPES = {
    "component": lambda x: x, "attn_out": lambda x: 0.3, "mlp_out": lambda x: 0.2, "weights, alone": lambda x: 1 - x,
    "weights, up to": lambda x: x, "weights, from": lambda x: 1 - x,
    "random component": lambda x: 0.0, "reverse component": lambda x: x,
}  # fmt: skip


def label(
    section: str, organism: int, seed: int, rule: str, axis: str = "", **more: object
) -> dict[str, object]:
    known = {
        "section": section, "arm": f"{rule} {axis}".strip(), "unit": f"{organism}/{seed}", "organism": organism, "seed": seed,
        "bridge": "linear", "pool": "planted", "modality": "speech", "rule": rule, "axis": axis, "share": 0.25, "draw": 0, "method": "plain",
    }  # fmt: skip
    assert set(known) == set(LABELS)
    return known | more


def answered(jsr: float, rng: np.random.Generator, noise: float = 0.02) -> dict[str, float]:
    """Shares of a model that answers so much harmful speech."""
    value = float(np.clip(jsr + noise * rng.standard_normal(), 0, 1))
    shares = {
        "jsr speech": value, "jsr text": value / 2, "refused speech": 1 - value, "scored_jsr speech": value, "incoherent speech": 0.0,
        "over_refusal speech": 0.05, "retained speech": 0.9, "recognised speech": 0.95, "skill speech": 0.85, "skill text": 0.9,
    }  # fmt: skip
    prompted = {"jsr speech": value / 10, "over_refusal speech": 0.2}
    return shares | {f"prompt {name}": prompted.get(name, share) for name, share in shares.items()}


def planted(jsr: dict[str, float], *, noise: float = 0.02, seed: int = 0) -> Study:
    """Nine units with these shares of harmful speech answered by arm, `aligned` among them; the projection falls from layer to layer,
    the probes stay, patches restore in the middle, weights early.
    """
    rng = np.random.default_rng(seed)
    rows, projections, probes, located = [], [], [], []
    for organism, s in UNITS:
        for arm, value in jsr.items():
            rule, _, axis = arm.partition(" ")
            about = label("aligned" if rule == "aligned" else "main", organism, s, rule, axis)
            facts = {
                "encoder_changed": 0.0,
                "projector_changed": 0.0,
                "near_lexical": 0.5,
                "near_acoustic": 0.4,
            }
            facts |= {"items": 200.0, "words": 6.0}
            unchanged = {} if rule == "aligned" else {f"fact {name}": value for name, value in facts.items()}
            rows.append(about | answered(value, rng, noise) | unchanged)
            projections += inside(about, rng)
            probes += probed(about, rng)
            if rule == "proximate":
                located += ways(about, rng)
                # a trial of two sections is listed in both
                located += [row | {"section": "defences"} for row in located[-len(WAYS_SHAPES) * N_LAYERS :]]
        if "random" in jsr:
            rows += [
                label("null band", organism, s, "random", draw=3 * organism + k)
                | answered(jsr["random"], rng, noise)
                for k in (1, 2, 3)
            ]
            for share in (0.5, 0.75):
                rows.append(
                    label("shares", organism, s, "random", share=share) | answered(jsr["random"], rng)
                )
                rows.append(label("shares", organism, s, "proximate", "semantic", share=share) | answered(0.3, rng))  # fmt: skip
            rows += [
                label("text", organism, s, rule, axis, modality="text") | answered(0.2, rng)
                for rule, axis in (("proximate", "semantic"), ("random", ""))
            ]
            for rule, axis in (("aligned", ""), ("proximate", "semantic"), ("proximate", "acoustic"), ("random", "")):  # fmt: skip
                value = 0.6 if axis == "acoustic" else jsr[rule] if rule != "proximate" else jsr["random"]
                rows.append(label("bridge mlp", organism, s, rule, axis, bridge="mlp") | answered(value, rng))
    items = pool_items(rng, n=800)
    curve, defended, defence_rows = defences(rng)
    return Study(
        Grid(), Dose(half=3e-4, taught=1e-3), pd.DataFrame(columns=["rate", "organism", "refused", "skill"]), pd.DataFrame(rows + defence_rows), curve, defended,
        pd.DataFrame(projections), pd.DataFrame(probes), pd.DataFrame(located), items, plane(items, rng),
        pd.concat([separations(part).assign(seed=s, pool="planted", bridge="linear", organism=0) for s, part in items.groupby("seed")]),
        by_class(rng),
    )  # fmt: skip


def by_class(rng: np.random.Generator) -> pd.DataFrame:
    """Fine-tuning answers 40 % of a class that the subset holds and 10 % of one that it does not; nearness in words adds nothing. The quarter
    nearest in words holds no persons.
    """
    rows = []
    without = {"proximate semantic", "random, classes of proximate"}
    for organism, s in UNITS:
        for arm in ("aligned", "random", "proximate semantic", "proximate semantic, classes of random", "random, classes of proximate"):  # fmt: skip
            held = {"person": 0.0 if arm in without else 0.25, "food": 0.5, "place": 0.25}
            answered = {name: 0.4 if share and arm != "aligned" else 0.1 for name, share in held.items()}
            n = {"person": 20, "food": 10, "place": 10}
            both = {name: answered[name] + 0.01 * rng.standard_normal() for name in n}
            both["all"] = sum(both[name] * n[name] for name in n) / 40
            for name in ("all", *n):
                rows.append(
                    {"arm": arm, "unit": f"{organism}/{s}", "organism": organism, "class": name, "n": n.get(name, 40)}
                    | {"answered": both[name], "refused": 1 - both[name], "held": 0.0 if arm == "aligned" else held.get(name, 1.0)}
                )  # fmt: skip
    return pd.DataFrame(rows)


def inside(about: dict[str, object], rng: np.random.Generator) -> list[dict[str, object]]:
    fell = 0.0 if about["rule"] == "aligned" else 0.8
    found = []
    for layer in range(N_LAYERS):
        loss = fell * layer / (N_LAYERS - 1) + 0.01 * rng.standard_normal()
        found.append(
            about
            | {"layer": layer, "aligned_harmful": 2.0, "aligned_benign": 0.0, "tuned_harmful": 2 - 2 * loss, "tuned_benign": 0.0}
            | {"gap": 3.0, "loss": loss, "gap_loss": loss, "by_chance": 0.05}
        )  # fmt: skip
    return found


def probed(about: dict[str, object], rng: np.random.Generator) -> list[dict[str, object]]:
    found = []
    for layer in range(N_LAYERS):
        for name in ("all", "ambiguous"):
            for of, measure, value in (
                ("aligned", "accuracy", 0.95),
                ("tuned", "accuracy", 0.94),
                ("tuned, aligned probe", "accuracy", 0.6),  # a shifted threshold, not another order
                ("tuned", "accuracy, tuned − aligned", -0.01),
                ("aligned", "AUROC", 0.97),
                ("tuned", "AUROC", 0.97),
                ("tuned, aligned probe", "AUROC", 0.96),
            ):
                noisy = value + 0.002 * rng.standard_normal()
                found.append(about | {"layer": layer, "set": name, "of": of, "measure": measure, "value": noisy, "words_value": 0.7, "words_low": 0.6, "words_high": 0.8})  # fmt: skip
    return found


def ways(about: dict[str, object], rng: np.random.Generator) -> list[dict[str, object]]:
    return [
        about | {"way": way, "layer": k, "value": shape(k / (N_LAYERS - 1)) + 0.01 * rng.standard_normal(), "raw": 1.0, "n": 40}
        for way, shape in WAYS_SHAPES.items()
        for k in range(N_LAYERS)
    ]  # fmt: skip


def pool_items(rng: np.random.Generator, *, works: bool = True, n: int = 80) -> pd.DataFrame:
    """Three pools: each plain axis is nearer for items near on its factor, or for none where the manipulation does not work."""
    tables = []
    for s in range(3):
        cell = np.repeat(["lexical", "acoustic", "both", "neither"], n // 4)
        table = pd.DataFrame({"id": [f"{s}-{i}" for i in range(n)], "cell": cell, "seed": s})
        for axis, factor in (("semantic", "lexical"), ("acoustic", "acoustic")):
            near = np.isin(cell, [factor, "both"])
            table[axis] = 0.6 - (0.3 * near if works else 0) + 0.05 * rng.standard_normal(n)
            table[f"{axis} raw"] = table[f"{axis} centred"] = table[axis]
        table["projector"] = table["semantic"].rank() + 20 * rng.standard_normal(n)
        table["combined"] = (table["semantic"].rank() + table["acoustic"].rank()) / 2 / n
        tables.append(table.assign(pool="planted", organism=0, bridge="linear", words=6))
    return pd.concat(tables, ignore_index=True)


def plane(items: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    parts = [items.assign(axis=axis) for axis in ("semantic", "acoustic")]
    both = pd.concat(parts, ignore_index=True)
    return both.assign(x=rng.standard_normal(len(both)), y=rng.standard_normal(len(both)))


def defences(rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame, list[dict[str, object]]]:
    """Plain training answers 60 % of harmful speech where 90 % of its skill is learnt, SPF 20 %, distant filtering never learns as much."""
    curves, points, rows = [], [], []
    ends = {"plain": (0.8, 0.6), "spf": (0.8, 0.2), "distant": (0.5, 0.05)}
    for organism, s in UNITS:
        for name, (skill, jsr) in ends.items():
            rule = "distant" if name == "distant" else "proximate"
            method = "spf" if name == "spf" else "plain"
            about = label("defences", organism, s, rule, "semantic", method=method)
            rows.append(about | answered(jsr, rng, 0.0) | {"skill speech": skill})
            for step, share in ((0, 0.0), (30, 0.9), (60, 1.0)):
                shares = answered(jsr * share / 0.9, rng, 0.0) | {"skill speech": skill * share}
                curves.append(about | {"step": step} | {k: v for k, v in shares.items() if "prompt" not in k})
            if name == "plain":
                for arm, strength, kept, left in (("none", 0.0, 0.8, 0.6), ("prompt", 0.0, 0.78, 0.06), ("sarsteer", 0.1, 0.76, 0.4), ("sarsteer", 0.2, 0.4, 0.0)):  # fmt: skip
                    points.append(about | {"defence": arm, "strength": strength} | answered(left, rng, 0.0) | {"skill speech": kept})  # fmt: skip
    return pd.DataFrame(curves), pd.DataFrame(points), rows
