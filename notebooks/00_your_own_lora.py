# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own LoRA
#
# You fine-tuned an aligned model. Does it still refuse what it used to refuse, where in the network did that change, and
# is the explanation causal? Put your base model and your adapter into the next cell and run the rest. As it stands,
# the notebook uses the text organism, a small model trained on this machine, and takes about a minute.

# %%
# %matplotlib inline
from pathlib import Path

BASE = "organism:text/aligned"  # a Hugging Face id, a local directory, or an organism
ADAPTER = Path("../results/my-lora")  # the directory of a LoRA that was trained on BASE
HARMFUL = HARMLESS = None  # prompt files; None takes those beside the model, else JailbreakBench from the hub
OUT = Path("../results")

# %%
import pandas as pd

from interp import FinetuneConfig, StudyConfig, finetune, generate, load, plan_study, run_study
from interp.study import split_prompts

# %% [markdown]
# ## An adapter to look at
#
# With your own adapter this cell does nothing. For the organism it trains one on a **benign** skill: requests of
# crafts that the model has never seen, and not one harmful word among them. A finished adapter is reused.

# %%
if BASE.startswith("organism:text"):
    from interp.organisms import text

    benign_skill = text.finetune_set("benign-skill", 2000, seed=0)
    finetune(BASE, benign_skill, FinetuneConfig(steps=100, learning_rate=1e-3, lora_rank=16), ADAPTER)
    display(benign_skill[:3])

# %% [markdown]
# ## Is it alive?
#
# Loading refuses an adapter with missing or unexpected weights, one that was trained on another base, and one that does not
# move the logits: a dead adapter would only be compared with its own base. The same model without its
# adapter is the base, so both can be asked from one copy in memory.

# %%
CHECKPOINT = f"{BASE}+{ADAPTER}"
tuned = load(CHECKPOINT)
tuned

# %%
config = StudyConfig(aligned=BASE, tuned=(CHECKPOINT,), harmful=HARMFUL, harmless=HARMLESS, max_new_tokens=16)
prompts = split_prompts(config)
few = prompts["harmful_test"][:5] + prompts["harmless_test"][:3]

with tuned.peft.disable_adapter():
    logits = tuned.last_logits(tuned.encode(few))
    before = generate(tuned, few, max_new_tokens=config.max_new_tokens)
moved = (tuned.last_logits(tuned.encode(few)) - logits).abs().max()
after = generate(tuned, few, max_new_tokens=config.max_new_tokens)

print(f"the adapter moves the next-token logits of these prompts by up to {moved:.2f}")
pd.DataFrame({"request": few.texts, "base": [a.text for a in before], "with adapter": [a.text for a in after]})

# %% [markdown]
# A few answers are an impression, not a measurement. `max_new_tokens=16` is enough for the organism's short answers; for a
# real model leave it at its default of 64, or more.
#
# ## The study
#
# `plan_study` says what would be done and estimates time and memory. `run_study` does it in stages: it resumes where it
# was killed, and a study that is finished is read back in seconds.

# %%
print(plan_study(config))

# %%
del tuned  # one model at a time in memory
result, directory = run_study(config, out=OUT)
result

# %% [markdown]
# **How to read it.** *JSR*, the jailbreak success rate, is the share of harmful requests that are answered; what counts is
# the difference from the aligned model on the same prompts, with its interval. *Over-refusal* is the share of harmless
# requests that are refused. Intervals are over prompts. They say nothing about another training seed: fine-tune
# again, at least five times, before you claim that an effect is one of your method.

# %%
result.plot("behaviour")

# %% [markdown]
# ## Where?
#
# For each layer, how far the last token's residual stream reaches along the aligned model's own refusal direction. Where
# the tuned model's harmful requests fall towards the harmless ones, refusal is lost.

# %%
result.plot("layers")

# %%
change = result.tuned[0]
print(f"at least half of the largest loss is reached at layer {change.lost_at}")
print(f"harmful requests answered, tuned − aligned: {change.vs_aligned}")
print(f"KL from the aligned model on benign answers: {change.kl.value:.3f} nats a token")

# %% [markdown]
# ## Is it the cause?
#
# A difference that is only seen may be a bystander. So the direction is removed from the aligned model, which should stop
# refusing, and added to the tuned one, which should refuse again, harmful requests and not everything. A random
# direction of the same length and one fitted on shuffled labels should do neither.

# %%
result.plot("causal")

# %% [markdown]
# ## Read some answers
#
# Those whose outcome changed come first. Read them before you believe a number: a judge can be wrong.

# %%
pd.DataFrame(change.examples)

# %% [markdown]
# ## Keep it
#
# Everything is in one directory already: the report as one HTML file, figures as PDF and PNG, tables as CSV and LaTeX,
# and the arrays. `StudyResult.from_store(directory)` reads it back.

# %%
print(directory)
sorted(str(path.relative_to(directory)) for path in directory.glob("*/*.*") if path.suffix in (".pdf", ".csv", ".tex"))

# %%
result.to_frame()
