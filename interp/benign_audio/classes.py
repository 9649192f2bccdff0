"""Is it nearness in words, or which classes of things the near items speak of? Subsets in which the two come apart.

Made after the main trials had been read: the quarter nearest in words holds hardly any persons and valuables, and it is on these that it
left more refused than a random quarter did. Two further subsets cross nearness with classes:

- `proximate semantic, classes of random`: of every class as many items as the random quarter has, the nearest in words.
- `random, classes of proximate`: of every class as many items as the quarter nearest in words has, drawn at random.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict

from interp.benign_audio.arms import composition, select
from interp.benign_audio.asking import SPEECH, ask, questions, turns
from interp.benign_audio.prepare import prepared
from interp.benign_audio.sources import SOURCES
from interp.benign_audio.trial import NONE, Trial
from interp.benign_audio.tuning import tune
from interp.evals.verdicts import Outcome
from interp.files import load_table, save_table
from interp.methods.selection import proximate, random_subset
from interp.models.checkpoint import Checkpoint
from interp.organisms import world
from interp.store import open_run

STUDY = "audio-benign-classes"
CLASS = {name: group for group, names in world.OBJECTS.items() for name in names}
HARMFUL = f"harmful, {SPEECH}"
OUTCOMES = {"answered": Outcome.COMPLIED_HARMFUL, "refused": Outcome.REFUSED}


class Control(BaseModel):
    """A subset that has another one's classes.

    Args:
        trial: the fine-tune on the proximate quarter. like: whose classes the subset has; it is the nearest items where these are the random
            quarter's, random ones where these are the proximate quarter's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    trial: Trial
    like: Literal["random", "proximate"]

    @property
    def arm(self) -> str:
        """The subset in words."""
        return f"{self.trial.arm if self.like == 'random' else 'random'}, classes of {self.like}"


def subset(items: pd.DataFrame, objects: Mapping[str, str], control: Control) -> tuple[str, ...]:
    """The ids of a control's subset.

    Args:
        items: of `nearness.measure`. objects: what each item asks about, by id.
    """
    trial = control.trial
    rule, axis = ("random", "") if control.like == "random" else ("proximate", trial.axis)
    like = select(items, rule, axis, trial.share, seed=trial.seed)  # type: ignore[arg-type]
    wanted = Counter(CLASS[objects[name]] for name in like)
    group = items["id"].map(lambda name: CLASS[objects[name]])
    chosen: list[str] = []
    for name, n in sorted(wanted.items()):
        part = items[group == name]
        if control.like == "random":
            distances = torch.tensor(part[trial.axis].to_numpy(dtype=float))
            chosen += proximate(part["id"].tolist(), distances, n, seed=trial.seed)
        else:
            # another draw than the random quarter's own
            chosen += random_subset(part["id"].tolist(), n, seed=1000 * trial.seed + 999)
    return tuple(chosen)


def keep_control(control: Control, out: Path) -> Path:
    """Fine-tune on a control's subset and ask, unless that is there; returns its directory."""
    trial = control.trial
    weights: dict[str, Path | str] = {"organism": Checkpoint.parse(trial.checkpoint).fingerprint()}
    with open_run(out, STUDY, describe_control(control), control, weights, [*SOURCES, Path(__file__)]) as run:
        if not run.finished:
            made = prepared(trial.preparation, out)
            ids = subset(made.items, _objects(trial, out), control)
            model = Checkpoint.parse(trial.checkpoint).load(device_map="cpu")
            tune(model, made.pool.chosen(ids), made.heard, trial.tuning, seed=trial.seed)
            save_table(run.file("answers.parquet"), ask(model, questions(trial.n_test)).assign(arm=NONE))
            save_table(run.file("items.parquet"), pd.DataFrame({"id": list(ids)}))
            facts = composition(made.items, ids)
            save_table(
                run.file("facts.parquet"), pd.DataFrame({"name": list(facts), "value": list(facts.values())})
            )
        return run.finish()


def describe_control(control: Control) -> str:
    """A readable name."""
    return f"{control.arm} organism {control.trial.organism} seed {control.trial.seed}"


def by_class(one: Trial | Control, path: Path, out: Path) -> pd.DataFrame:
    """One row a class of what is asked about: harmful speech answered and refused (shares of `n` requests), `held`, the share of the items
    trained on that speak of the class, and the whole set's shares as class `all`.
    """
    trial = one.trial if isinstance(one, Control) else one
    answers = load_table(path / "answers.parquet")
    answers = answers[(answers["arm"] == NONE) & (answers["set"] == HARMFUL)]
    about = {
        turn.prompt.id: CLASS[str(turn.prompt.meta["object"])] for turn in turns(trial.n_test)["harmful"]
    }
    asked = answers["prompt"].map(about)
    held: Counter[str] = Counter()
    if trial.rule != "aligned":
        if isinstance(one, Control):
            ids = load_table(path / "items.parquet")["id"].tolist()
        else:
            made = prepared(trial.preparation, out)
            ids = list(
                select(made.items, trial.rule, trial.axis, trial.share, seed=trial.seed, draw=trial.draw)
            )
        objects = _objects(trial, out)
        held = Counter(CLASS[objects[name]] for name in ids)
    rows = []
    for name in ("all", *world.OBJECTS):
        mine = answers if name == "all" else answers[asked == name]
        if len(mine):
            rows.append(
                {"arm": one.arm, "unit": trial.unit, "organism": trial.organism, "class": name, "n": len(mine)}
                | {what: float((mine["outcome"] == outcome.value).mean()) for what, outcome in OUTCOMES.items()}
                | {"held": 1.0 if name == "all" else held[name] / max(1, held.total())}
            )  # fmt: skip
    return pd.DataFrame(rows)


def _objects(trial: Trial, out: Path) -> dict[str, str]:
    """What each item of a pool asks about, by id."""
    return {
        turn.prompt.id: str(turn.prompt.meta["object"])
        for turn in prepared(trial.preparation, out).pool.turns
    }
