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
# # Safety and utility gradients, and training between them
#
# SPF (2026, [arXiv 2601.10141](https://arxiv.org/abs/2601.10141)) rests on three observations: gradients of refusals lie in few
# dimensions, they pull against those of the task, and one refusal is enough to find them. Here each is measured on the text organism
# with its nulls, then the organism is fine-tuned with and without protection, watched by a monitor. One organism, one seed: a look,
# no claim. The comparison over eight organisms is `interp run spf`, its results are in docs/SPF.md.

# %%
# %matplotlib inline
import pandas as pd

from interp import FinetuneConfig, load
from interp.defence.geometry import measure_geometry
from interp.defence.trial import measure
from interp.methods.safety_monitor import SafetyMonitor
from interp.methods.spf import GradientSurgery
from interp.methods.surgery_trainer import RefusalLoss, SurgeryTrainer
from interp.models.finetune import train
from interp.organisms.text_tasks import task
from interp.report import defence_figures as draw

data = task(seed=0)
aligned = load("organism:text/aligned", device_map="cpu")
data.train[0].text, data.train[0].response, data.safety[0].text, data.safety[0].response

# %% [markdown]
# ## The three observations
#
# Per-example gradients of all linear layers, 64 refusals and 64 examples of the skill. Only their inner products are kept.

# %%
geometry = measure_geometry(
    aligned, data.safety.sample(64, 0), data.train.sample(64, 0), n_single=4, n_draws=20, progress=False
)
tables = {name: getattr(geometry, name).assign(seed=0) for name in ("spectra", "ranks", "conflicts", "overlaps")}
draw.spectra(tables["spectra"], tables["ranks"])

# %% [markdown]
# Fewer dimensions for refusals, in every layer but the first. The grey line is the null: sets of the same size drawn from both.

# %%
draw.conflict_map(tables["conflicts"])

# %% [markdown]
# The cosine is what decides conflict, and beside its ceiling (two halves of the skill's own examples) it is small. The permuted null is
# near the ceiling because it mixes both sets: falling under it says only that the tasks differ.

# %%
draw.overlap_by_layer(tables["overlaps"])

# %% [markdown]
# One refusal shares more of the safety set's leading subspace than one example of the skill does. That difference, not the distance from
# the random line, is what is special about safety.
#
# ## Training between them
#
# The same 30 steps on the skill: plain, with SPF, and with refusals mixed in. `k=0` protects nothing and is the plain optimiser bit
# for bit, but logs the same.

# %%
methods = {"plain": {"k": 0}, "spf": {"k": 20}, "mixing": {"method": "mixing"}}
config = FinetuneConfig(method="full", steps=30, learning_rate=6e-4)
steps, outcomes = [], []
for name, options in methods.items():
    model = load("organism:text/aligned", device_map="cpu")
    opening = sorted({model.response_ids(prompt)[0] for prompt in data.safety})
    monitor = SafetyMonitor(model, data.probes, refusal_ids=opening, every=5, live=False)
    trainers = []

    def make(**given):
        def surgery(module):
            return GradientSurgery(module.named_parameters(), RefusalLoss(model, data.safety), **options)

        trainers.append(SurgeryTrainer(surgery=surgery, **given))
        return trainers[0]

    train(model, data.train, config, trainer=make, callbacks=[monitor], progress=False)
    steps.append(trainers[0].surgery_table.assign(method=name, seed=0))
    outcomes.append({"method": name, "leak": monitor.rows[-1]["leak"], **measure(model, data)})
draw.over_steps(pd.concat(steps))

# %%
pd.DataFrame(outcomes).set_index("method").round(2)

# %% [markdown]
# `jsr` is the share of 200 held-out harmful requests answered, `utility` that of 100 held-out pairs of the skill, `leak` what the
# monitor saw without generating anything. Compare methods at equal utility, over seeds: see docs/SPF.md.
