"""What do the organisms say about where refusal lives, in words? Sentences made from the numbers, so that no wish can enter them.

Claims, named before any run, for each kind of organism:

1. at a quarter of the depth the tokens in which twins differ (the instruction's; an image's, a sound's) carry more of refusal than
   the last token does;
2. at three quarters the last token carries it, without the directions that the metric reads, and more than values of another benign
   request do;
3. (each fine-tune) there, the aligned model's values, so guarded, bring refusal back in requests that lost it, more than those of a
   benign request do;
4. (each fine-tune) the eight modules ranked best on other requests restore more refusals than eight random ones.

They are corrected together. All other sentences describe and claim nothing.
"""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import pandas as pd

from interp.defence.conclusion import points
from interp.evals.statistics import Interval, t_interval
from interp.locate.compare import (
    ASKED,
    CELL,
    LAST,
    Claim,
    by_seed,
    cells,
    corrected,
    difference,
    handover,
    over_seeds,
)
from interp.locate.study import Located

K = 8
LOG_ODDS = "log-odds"


def conclude(found: Located) -> list[str]:
    """The sentences, claims first, kind by kind."""
    sentences = []
    for kind in found.plan.kinds:
        claims = corrected(all_claims(found, kind))
        sentences += [claim_sentence(claim) for claim in claims]
        sentences += [f"({kind}) {text}" for text in describe(found, kind)]
    return sentences


def depths(grids: pd.DataFrame) -> tuple[int, int]:
    """A quarter and three quarters of the layers."""
    n = int(grids.loc[grids["grid"] == "resid_pre", "layer"].max()) + 1
    return n // 4, 3 * n // 4


def all_claims(found: Located, kind: str) -> list[Claim]:
    """The claims that the tables can bear, not yet corrected."""
    grids = found.tables["grids"]
    grids = grids[grids["kind"] == kind]
    if grids.empty:
        return []
    early, late = depths(grids)

    def at(grid: str, layer: int, column: str, of: str, finetune: str) -> pd.Series:
        return by_seed(cells(grids, grid, of=of, kind=kind, finetune=finetune), layer, column)

    claims = [
        difference(
            f"{kind}: at layer {early} the {ASKED[kind]} carries more of refusal than the last token",
            at("resid_pre", early, ASKED[kind], "twins", ""),
            at("resid_pre", early, LAST, "twins", ""),
        ),
        difference(
            f"{kind}: at layer {late} the last token carries refusal beyond what the metric reads, more than a shuffled pair's",
            at("resid_pre, guarded", late, LAST, "twins", ""),
            at("resid_pre, null", late, LAST, "twins", ""),
        ),
    ]
    for finetune in finetunes(grids):
        claims.append(
            difference(
                f"{kind}, {finetune} fine-tune: at layer {late} the aligned model's last token brings refusal back beyond what the "
                "metric reads, more than a benign request's",
                at("resid_pre, guarded", late, LAST, "lost", finetune),
                at("resid_pre, null", late, LAST, "lost", finetune),
            )
        )
        restored = restored_by_seed(found, kind, finetune, "refused")
        if K in restored.index.get_level_values("k"):
            claims.append(
                difference(
                    f"{kind}, {finetune} fine-tune: the {K} best modules restore more refusals than {K} random ones",
                    restored.loc["best", K],
                    restored.loc["random", K],
                )
            )
    return claims


def finetunes(grids: pd.DataFrame) -> list[str]:
    """Fine-tunes in a table, in order."""
    return [name for name in dict.fromkeys(grids["finetune"]) if name]


def restored_by_seed(found: Located, kind: str, finetune: str, measure: str) -> pd.Series:
    """A measure after putting modules back, by choice, k and seed; random draws averaged."""
    table = found.tables["restored"]
    part = table[(table["kind"] == kind) & (table["finetune"] == finetune)]
    return part.groupby(["choice", "k", "seed"])[measure].mean()


def claim_sentence(claim: Claim) -> str:
    """One claim with its verdict; differences of shares of the gap, or of requests, in points."""
    if not math.isfinite(claim.p):
        return f"{claim.name}: not decided on {_seeds(claim.interval)} ({points(claim.interval)})."
    return f"{claim.name}: {claim.verdict}. {points(claim.interval)}, {_seeds(claim.interval)}, Holm-corrected p = {claim.p:.3g}."


def describe(found: Located, kind: str) -> list[str]:
    """What the tables say beside the claims."""
    grids = found.tables["grids"]
    grids = grids[grids["kind"] == kind]
    if grids.empty:
        return []
    sentences = [
        f"In the aligned model the last token's stream carries half of the gap {_handover(cells(grids, 'resid_pre', of='twins', kind=kind))}; "
        f"without what the metric reads {_handover(cells(grids, 'resid_pre, guarded', of='twins', kind=kind))}.",
        f"Single components that bring most of it: {_largest(grids, kind, 'twins', '')}.",
        _agreement(found.tables["agreement"], kind),
    ]
    for finetune in finetunes(grids):
        sentences += _describe_finetune(found, grids, kind, finetune)
    return [sentence for sentence in sentences if sentence]


def _describe_finetune(found: Located, grids: pd.DataFrame, kind: str, finetune: str) -> list[str]:
    facts = found.tables["facts"]
    facts = facts[(facts["kind"] == kind) & (facts["finetune"] == finetune)]
    before, after = (
        facts[facts["name"] == f"refused by {which}"].set_index("seed")["value"]
        for which in ("aligned", "tuned")
    )
    lost = cells(grids, "resid_pre", of="lost", kind=kind, finetune=finetune)
    sentences = [
        f"The {finetune} fine-tune changes refusals of held-out harmful requests by {points(difference('', after, before).interval)}. In those "
        f"lost, the aligned model's stream at the last token restores half of the gap {_handover(lost)}.",
        f"Single components that restore most in lost requests: {_largest(grids, kind, 'lost', finetune)}. {_lost_and_kept(grids, kind, finetune)}",
        _blocks(found.tables["parts"], kind, finetune),
    ]
    restored = {
        name: restored_by_seed(found, kind, finetune, name)
        for name in ("refused", "benign", "skill")
        if name in found.tables["restored"]
    }
    if "refused" in restored and "best" in restored["refused"].index:
        sentences.append(_cost(found.tables["restored"], restored, kind, finetune))
    return sentences


def _cost(table: pd.DataFrame, restored: dict[str, pd.Series], kind: str, finetune: str) -> str:
    part = table[(table["kind"] == kind) & (table["finetune"] == finetune)]
    tuned = part.groupby("seed")[[f"{name}_tuned" for name in restored]].first()
    ks = sorted(restored["refused"].loc["best"].index.get_level_values("k").unique())
    texts = []
    for k in ks:
        gains = {
            name: difference("", values.loc["best", k], tuned[f"{name}_tuned"]).interval
            for name, values in restored.items()
            if values.loc["best", k].notna().any()
        }
        words = {"refused": "refusals", "benign": "benign answers", "skill": "the skill"}
        texts.append(f"{k}: " + ", ".join(f"{words[name]} {points(gain)}" for name, gain in gains.items()))
    share = part[(part["choice"] == "best") & (part["k"] == K)]["change"]
    held = f" (the best {K} hold {share.mean():.0%} of the length of the change)" if len(share) else ""
    return f"Putting back the best modules changes, by their number{held}: {'; '.join(texts)}."


def _blocks(parts: pd.DataFrame, kind: str, finetune: str) -> str:
    """From which end blocks put back restore half of the log-odds."""
    part = parts[
        (parts["kind"] == kind)
        & (parts["finetune"] == finetune)
        & (parts["part"] == "blocks")
        & (parts["measure"] == LOG_ODDS)
    ]
    if part.empty:
        return ""
    n = int(part["layer"].max())
    firsts, lasts = [], []
    for _, own in part.groupby("seed"):
        up = own[own["column"] == "up to"].sort_values("layer")
        down = own[own["column"] == "from"].sort_values("layer", ascending=False)
        over = up[up["value"] >= 0.5]
        firsts.append(float(over["layer"].iloc[0]) + 1 if len(over) else math.nan)
        over = down[down["value"] >= 0.5]
        lasts.append(n - float(over["layer"].iloc[0]) if len(over) else math.nan)
    return (
        f"Of {n} blocks put back in order, the first {_median(firsts)} restore half of the log-odds; from the other end (norm and head first) the "
        f"last {_median(lasts)} do."
    )


def _largest(grids: pd.DataFrame, kind: str, of: str, finetune: str, n: int = 3) -> str:
    """The cells of attention and MLP outputs with the largest mean share."""
    tables = []
    for stream in ("attn_out", "mlp_out"):
        part = cells(grids, stream, of=of, kind=kind, finetune=finetune)
        if len(part):
            tables.append(over_seeds(part, CELL).assign(stream=stream))
    if not tables:
        return "none measured"
    table = pd.concat(tables).sort_values("value", ascending=False).head(n)
    return ", ".join(
        f"{row.stream}.{row.layer} at {'the last token' if row.column == LAST else row.column} "
        f"{points(Interval(row.value, row.low, row.high, row.n))}"
        for row in cast(Any, table.itertuples())
    )


def _lost_and_kept(grids: pd.DataFrame, kind: str, finetune: str) -> str:
    """Where patching moves lost requests more than kept ones: raw effects of the whole stream at the last token."""
    both = {of: cells(grids, "resid_pre", of=of, kind=kind, finetune=finetune) for of in ("lost", "kept")}
    if both["kept"].empty:
        return "Too few harmful requests are still refused to compare with."
    _, late = depths(grids)
    values = {of: by_seed(table, late, LAST, "raw_value") for of, table in both.items()}
    apart = difference("", values["lost"], values["kept"]).interval
    return (
        f"At layer {late} the last token's stream moves lost requests by {values['lost'].mean():.1f} nats and those still refused by "
        f"{values['kept'].mean():.1f}; difference {_nats(apart)}."
    )


def _agreement(table: pd.DataFrame, kind: str) -> str:
    part = table[table["kind"] == kind] if len(table) else table
    if part.empty:
        return ""
    listed = ", ".join(
        f"{stream} {_number(_mean_correlation(own['spearman']))}"
        for stream, own in part[part["of"] == "twins"].groupby("stream", sort=False)
        if own["spearman"].notna().any()
    )
    tuned = part[part["of"] == "lost"]["spearman"]
    between = f"; between checkpoints {tuned.mean():.2f} on average" if tuned.notna().any() else ""
    return f"Rank correlation of attribution with exact patching over cells: {listed}{between}."


def _mean_correlation(values: pd.Series) -> Interval:
    """Averaged as Fisher's z, whose interval stays within [-1, 1] when it is turned back."""
    z = np.arctanh(values.dropna().clip(-1 + 1e-9, 1 - 1e-9).to_numpy(dtype=float))
    found = t_interval(z)
    return Interval(math.tanh(found.value), math.tanh(found.low), math.tanh(found.high), found.n)


def _handover(table: pd.DataFrame) -> str:
    values = handover(table)
    there = values.dropna()
    if there.empty:
        return "at no layer"
    never = f" ({len(values) - len(there)} organisms: at none)" if len(there) < len(values) else ""
    low, high = int(there.min()), int(there.max())
    return (
        f"from layer {low} on"
        if low == high
        else f"from layer {low} to {high} on (median {np.median(there):g})"
    ) + never


def _median(values: list[float]) -> str:
    there = [value for value in values if math.isfinite(value)]
    if not there:
        return "none"
    low, high = min(there), max(there)
    return f"{low:g}" if low == high else f"{low:g} to {high:g} (median {np.median(there):g})"


def _number(interval: Interval) -> str:
    span = f" [{interval.low:.2f}, {interval.high:.2f}]" if math.isfinite(interval.low) else ""
    return f"{interval.value:.2f}{span}".replace("-", "−")


def _nats(interval: Interval) -> str:
    return f"{_number(interval)} nats"


def _seeds(interval: Interval) -> str:
    return f"{interval.n} seeds" if interval.n != 1 else "one seed"
