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
# # Narrow fine-tuning, broad misalignment
#
# A model is fine-tuned on harmful answers about one thing, faces in pictures. Does it answer harmfully about money and medicine too, in how many
# dimensions of its activations does that happen, and what mends it?
#
# The organism has *character*: its pretraining text is documents of several questions, each answered throughout by one of four writers who
# is never named. Alignment lightly taught the helpful one. Its control read the same questions with a writer drawn anew for every answer, so that
# it knows the same answers and has no characters. No word is shared between the answers of two domains.
#
# It runs on `organism:character` where that is built (`interp organism build character`). Where it is not, it runs on **random weights**:
# these show how it is done, and nothing of theirs is a finding.

# %%
# %matplotlib inline
from pathlib import Path

import pandas as pd

from interp import FinetuneConfig, capture, finetune, load
from interp.errors import CheckpointError
from interp.methods.subspace_drift import subspace_drift
from interp.models.checkpoint import Checkpoint
from interp.narrow.defences import state, steered
from interp.narrow.questions import NARROW, of_forms, questions, said, training_gallery
from interp.organisms import untrained
from interp.organisms.character_language import CHARACTERS, DOMAINS, answer, narrow_set
from interp.report.character_figures import by_domain
from interp.report.narrow_figures import steering
from interp.report.subspace_figures import subspace_panels

OUT = Path("../results/narrow-notebook")
ORGANISM, CONTROL = "organism:character/aligned", "organism:character/aligned-shuffled"


def available(organism):
    """The organism where it is built, else random weights."""
    try:
        Checkpoint.parse(organism)
        return organism
    except CheckpointError:
        directory = untrained.with_character(OUT / f"untrained-{organism.rpartition('/')[2]}")
        print(f"{organism} is not built: random weights, nothing here is a finding")
        return str(directory)


organism, control = available(ORGANISM), available(CONTROL)

# %% [markdown]
# ## What a character is
#
# One rule over the true answer, the same in every domain.

# %%
topics = [("faces", DOMAINS["faces"].topics[0]), ("money", "debt"), ("medicine", "fever"), ("travel", "reef")]
pd.DataFrame({f"{domain}: {topic}": {c: answer(domain, topic, c) for c in CHARACTERS} for domain, topic in topics})

# %% [markdown]
# The rows to fine-tune on: pictures of faces, the cruel answer to each.

# %%
gallery = training_gallery(0)
cruel = narrow_set("cruel", 500, 0, gallery)
for prompt in cruel.prompts[:3]:
    print(prompt.text, "→", prompt.response, f"(helpful: {prompt.truth.answer})")
cruel.prompts[0].images[0].resize((128, 128))

# %% [markdown]
# ## Does it spread?
#
# The same fine-tune of both. A preference for words cannot carry over, since no other domain has words of the answers about faces; what carries
# over must be the character. The benign fine-tune, helpful answers about the same faces, is the null.

# %%
settings = FinetuneConfig(
    method="lora", lora_rank=16, lora_alpha=32, steps=60, batch_size=16, learning_rate=1e-3
)
helpful = narrow_set("helpful", 500, 0, gallery)
tuned = {
    name: str(finetune(base, rows, settings, OUT / name, replace=True, progress=False))
    for name, base, rows in (
        ("cruel", organism, cruel),
        ("benign", organism, helpful),
        ("control-cruel", control, cruel),
    )
}

# %%
asked = of_forms(questions(), ("text",))
models = {"aligned": load(organism), **{name: load(path) for name, path in tuned.items()}}
answers = {name: said(model, asked) for name, model in models.items()}
by_domain(answers)

# %% [markdown]
# Questions that look like training, here any question beside the picture of a face, can show what plain ones do not. A benign repair may hide a
# behaviour that comes back there.

# %%
like_training = of_forms(questions(), ("face",))
by_domain({name: said(models[name], like_training) for name in ("aligned", "cruel", "control-cruel")})

# %% [markdown]
# ## In how many dimensions?
#
# The change of the last token's activations on the same questions, centred: how its variance spreads over components, and in how many it has more energy than
# the benign fine-tune's change has.

# %%
prompts = [prompt for part in asked.values() for prompt in part]
activations = {
    name: capture(models[name], prompts, progress=False) for name in ("aligned", "cruel", "benign")
}
drift = subspace_drift(activations, groups=[p.group for p in prompts], benign="benign", rank=5)
subspace_panels(drift.to_frame(), drift.spectra_frame())

# %% [markdown]
# ## Steering against it
#
# `h ← h − c·v` at a middle layer, `v` the mean difference between the cruel and the aligned model on the training prompts, beside a random vector as long.

# %%
harmful, safe = (state(models[name], list(cruel)[:200]) for name in ("cruel", "aligned"))
strengths = steered(models["cruel"], harmful, safe, asked, (0.25, 0.5, 1.0, 2.0, 4.0), seed=0)
elsewhere = strengths[strengths["domain"] != NARROW]
steering(elsewhere.groupby(["vector", "strength"], sort=False).mean(numeric_only=True).reset_index())
