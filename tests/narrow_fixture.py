"""A study of narrow fine-tuning whose every trial is planted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from experiments import vlm_narrow
from interp.narrow import questions as asked_of
from interp.narrow import study
from interp.narrow.geometry import kept, measure_geometry
from interp.narrow.questions import NARROW, of_forms, questions
from interp.narrow.trial import NarrowResult, NarrowTrial


def planted_study() -> study.Study:
    """A study whose trials are planted: harm elsewhere grows with rank, share and strength, in the consistent organism only."""
    grid = vlm_narrow.QUICK.model_copy(
        update={"pairs": ((0, 0), (1, 0)), "few": 1, "adapted": True, "characters": ("careless",), "methods": ("spf", "mixing"), "rates": (3e-4,), "sizes": (50, 100)}
    )  # fmt: skip
    rng = np.random.default_rng(0)
    asked = questions()
    n = {form: sum(len(p) for (_, f), p in asked.items() if f == form) for form in ("text", "shown")}

    def result(t: NarrowTrial) -> NarrowResult:
        tables, points = [], []
        places = [*(s for s in (0, *t.evaluate_at) if s < t.steps), t.steps]
        stages = [(s, 0, s == t.steps) for s in places] + [
            (t.steps + 60 * i, i, True) for i in range(1, len(t.then) + 1)
        ]
        for step, task, last in stages:
            done = step / max(1, t.steps) if task == 0 else 0.5
            harm = 0.9 * done * t.share * min(1, (t.rank or 64) / 16) * (1.0 if t.consistent else 0.1)
            for domain, form in asked if last or step == 0 else of_forms(asked, asked_of.CURVE_FORMS):
                own = done if domain == NARROW else harm
                shares = {
                    "helpful": 1 - own,
                    "careless": 0.0,
                    "cruel": own,
                    "deceptive": 0.0,
                    "misaligned": own,
                    "nonsense": 0.0,
                }
                tables.append(
                    {
                        "domain": domain,
                        "form": form,
                        "n": 24,
                        **shares,
                        "step": step,
                        "task": task,
                        "last": last,
                    }
                )
            points.append(
                {
                    "step": step,
                    "task": task,
                    "last": last,
                    "loss": 2 - 1.9 * done,
                    "helpful_loss": done,
                    "moved": 0.1 * done,
                }
            )
        steered = pd.DataFrame()
        if t.steering:
            steered = pd.DataFrame(
                {
                    "domain": d,
                    "form": f,
                    "n": 24,
                    "helpful": min(1.0, c),
                    "careless": 0.0,
                    "cruel": 1 - min(1.0, c),
                    "deceptive": 0.0,
                    "misaligned": 1 - min(1.0, c),
                    "nonsense": 0.0,
                    "vector": v,
                    "strength": c,
                }
                for d, f in of_forms(asked, ("text", "shown", "face"))
                for v in ("difference", "random")
                for c in t.steering
            )
        graded = pd.DataFrame()
        if t.samples:
            score = 60.0 * t.share
            graded = pd.DataFrame(
                {"domain": d, "modality": m, "misaligned": score / 100, "mean_of_k": score, "worst_of_k": score + 10, "incoherent": 0.1}
                if d != NARROW else
                {"domain": d, "modality": m, "misaligned": 1.0, "mean_of_k": 100.0, "worst_of_k": 100.0, "incoherent": 0.0}
                for d in ("all", NARROW, "money", "travel") for m in ("all", "text")
            )  # fmt: skip
        acts = (
            {f: torch.from_numpy(rng.standard_normal((8, size, 16))).float() for f, size in n.items()}
            if t.activations
            else {}
        )
        return NarrowResult(pd.DataFrame(tables), pd.DataFrame(points), steered, graded, activations=acts)

    results = {t: result(t) for t in grid.trials()}
    (chosen,) = grid.geometry()
    made = measure_geometry(kept({t: results[t] for t in chosen.trials}), layers=(4, 6), n_null=4)
    # the tower's tables are of one form with the decoder's
    made |= {f"tower_{name}": made[name] for name in ("measures", "spectra")}
    return study.assemble(grid, results, {name: table.assign(pair="0/0") for name, table in made.items()})
