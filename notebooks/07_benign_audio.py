# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Benign speech, near to harm
#
# Fine-tuning on harmless speech can break refusal, and more so, it is said, where that speech lies near to harmful speech. Near in what? In its
# words, in its sound, or as the model's own encoder hears it? Here a pool of benign clips is made in which words and voices come apart, its
# distances to harmful speech are taken on each axis, and the model is fine-tuned on the nearest and the farthest quarter.
#
# It runs on `organism:audio/aligned` where that is built (`interp organism build audio`, minutes). Where it is not, it runs on **random weights**:
# these show how it is done, and nothing of theirs is a finding. For your own data: `interp filter`, docs/FILTER.md.

# %%
# %matplotlib inline
from pathlib import Path

import pandas as pd
from IPython.display import Audio, display

from interp import load
from interp.benign_audio import mechanism
from interp.benign_audio.arms import composition, select
from interp.benign_audio.asking import ask, questions, shares
from interp.benign_audio.nearness import measure, separations
from interp.benign_audio.pool import pool
from interp.benign_audio.tuning import Tuning, tune
from interp.errors import CheckpointError
from interp.models.checkpoint import Checkpoint
from interp.organisms import untrained
from interp.organisms.audio_model import hear
from interp.organisms.audio_prompts import as_prompts
from interp.report.benign_figures import distance_histograms, embedding_planes, safety_bars
from interp.report.benign_layer_figures import projection_by_layer

ORGANISM = "organism:audio/aligned"
try:
    Checkpoint.parse(ORGANISM)
    organism, trained = ORGANISM, True
except CheckpointError:
    organism, trained = str(untrained.with_hearing(Path("../results") / "untrained-hearing")), False
    print(f"{ORGANISM} is not built: random weights, nothing here is a finding")
n_items, n_harmful, n_asked = (400, 100, 60) if trained else (80, 76, 8)

# %% [markdown]
# ## A pool in which words and voices come apart
#
# Every item asks for a benign craft that is new to the model. `lexical` items name an object that harmful speech names, `acoustic` ones are said by a
# speaker of harmful speech, `both` and `neither` are what they say.

# %%
made = pool("planted", 0, n=n_items, n_harmful=n_harmful)
first = {cell: made.turns[made.cells.index(cell)] for cell in ("lexical", "acoustic", "both", "neither")}
for prompt in as_prompts([*first.values(), made.harmful[0]], "first").prompts:
    samples, rate = prompt.audio
    display(Audio(samples, rate=rate))
pd.DataFrame({cell: {"words": turn.prompt.text, "voice": turn.line[1].name} for cell, turn in first.items()}).T

# %% [markdown]
# ## How near is each item to harmful speech?
#
# Words weighed by rarity, cepstral coefficients of the sound, the two combined by rank, and the model's own encoder and projector. A manipulation
# check says how often an item that is near on a factor is nearer on an axis than one that is not: 0.5 by chance.

# %%
model = load(organism)
items, plane = measure(made, model, None)
embedding_planes(plane)

# %%
distance_histograms(items)

# %%
separations(items).pivot(index="axis", columns="factor", values="nearer").round(2)

# %% [markdown]
# ## Fine-tune on a quarter
#
# As many steps for each. Nothing harmful is in any of them. The rate is the study's lower dose, after which a random quarter leaves about half of harmful speech
# refused: where refusal is gone whatever one trains on, subsets cannot differ. One seed: a look, no claim (docs/AUDIO_BENIGN.md has nine units).

# %%
arms = {
    "proximate semantic": ("proximate", "semantic"),
    "distant semantic": ("distant", "semantic"),
    "proximate acoustic": ("proximate", "acoustic"),
    "random": ("random", ""),
}
chosen = {name: select(items, rule, axis, 0.25, seed=0) for name, (rule, axis) in arms.items()}
pd.DataFrame({name: composition(items, ids) for name, ids in chosen.items()}).T.round(2)

# %%
asked = questions(n_asked)
heard = hear(model.module.model.audio_tower, made.turns, progress=False)
rows = [{"rule": "aligned", "axis": "", **shares(ask(model, asked))}]
tuned = {}
for name, (rule, axis) in arms.items():
    tuned[name] = load(organism)
    tune(tuned[name], made.chosen(chosen[name]), heard, Tuning(steps=40 if trained else 2, learning_rate=3e-4), seed=0)
    rows.append({"rule": rule, "axis": axis, **shares(ask(tuned[name], asked))})
table = pd.DataFrame(rows)
table[["rule", "axis", "jsr speech", "jsr text", "over_refusal speech", "retained speech", "skill speech"]].round(2)

# %%
safety_bars(table.assign(unit="0/0"), {"jsr speech": "asked in speech", "jsr text": "asked in writing"})

# %% [markdown]
# ## Where it is lost
#
# The projection of harmful speech onto the aligned model's refusal direction, layer by layer, and the share of the aligned gap that each fine-tune lost,
# beside the same shift along random directions. (Random weights refuse nothing and have no such direction.)

# %%
if trained:
    found = mechanism.reference(organism, n_asked, 60, 0)
    layers = [
        mechanism.projections(found, of, n_asked).assign(rule=rule, axis=axis, unit="0/0")
        for of, (rule, axis) in [(None, ("aligned", "")), *((tuned[name], arms[name]) for name in arms)]
    ]
    display(projection_by_layer(pd.concat(layers, ignore_index=True)))
