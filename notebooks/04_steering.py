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
# # Steering
#
# Two ways of reaching into a model while it answers. *Steering* adds a vector: it asks what a direction can do. *Patching*, in the next
# notebook, carries activations from one run into another: it asks what a component does. Here SARSteer (2025,
# [arXiv 2510.17633](https://arxiv.org/abs/2510.17633)) on the text organism. One organism, one draw of prompts: a look, no claim. The comparison over organisms is
# `interp run sarsteer`, its results are in docs/STEERING.md.

# %%
# %matplotlib inline
import pandas as pd

from interp import capture, generate, load
from interp.evals.judges import ExactJudge
from interp.methods.sarsteer import fit_sarsteer
from interp.methods.steering import Condition, SteeringVectors, steer
from interp.methods.steering_answers import answers, rates
from interp.report import steering_figures as draw
from interp.steering_study.data import REFUSAL, calibration, evaluation
from interp.steering_study.geometry import cosines

model = load("organism:text/aligned", device_map="cpu")
data = calibration("text", n=60, seed=0)  # pairs seen in alignment
asked = evaluation("text", n=60)  # pairs that no stage has seen
data.written_harmful[0].text, data.harmful[0].text, asked["fiction"]["benign"][0].text

# %% [markdown]
# ## What is there to gain?
#
# The organism learnt to refuse plain requests. A fictional framing it knows from pretraining was left out of alignment, and part of what
# it refuses plainly it answers in a story.

# %%
judge = ExactJudge()
plain = {
    name: answers(model, parts, judge, max_new_tokens=16, batch_size=128) for name, parts in asked.items()
}
pd.DataFrame({name: rates(table) for name, table in plain.items()}).T[
    ["refused", "jsr", "over_refusal", "correct"]
]

# %% [markdown]
# ## Three vectors a layer
#
# - the difference of means of harmful and benign requests, asked plainly;
# - the same asked as fiction;
# - SARSteer's `d`: what a sentence of refusal behind a harmful request changes.
#
# Cosines of random pairs would lie in the grey band. In this organism `d` points *away* from the other two: no request it was trained on ends in a
# sentence of refusal, so such a sentence means nothing to it yet. The audio organism has met such turns.

# %%
fit = fit_sarsteer(model, data.harmful, data.benign, refusal=REFUSAL, progress=False)
written = [capture(model, part, progress=False) for part in (data.written_harmful, data.written_benign)]
told = [capture(model, part, progress=False) for part in (data.harmful, data.benign)]
vectors = {
    "text": SteeringVectors.difference(*written),
    "fiction": SteeringVectors.difference(*told),
    "d": fit.refusal,
}
draw.cosine_by_layer(cosines(vectors).assign(seed=0))

# %% [markdown]
# ## The safe space
#
# Benign requests vary in some directions more than in others. SARSteer takes the leading ten out of `d`, so that the push does not land where benign
# answers are decided. How much of `d` that is, and what a random vector would have there:

# %%
draw.safe_space(fit.to_frame(rank=10))

# %%
vector = fit.vectors(rank=10, removal=1.0)
max(
    float((fit.basis(i, 10) @ vector.vectors[i]).abs().max()) for i in range(model.n_layers)
)  # nothing is left there

# %% [markdown]
# ## Refusals gained, and their price
#
# Each vector at a few strengths, beside a random direction of equal norm. Read across the panels: a strength that gains refusals (a) and has
# benign requests refused (b) or garbled (c) buys nothing.

# %%
arms = {
    "plain": vectors["text"],
    "sarsteer": vector,
    "unablated": fit.refusal,
    "random": vector.random(seed=0),
}
rows = [{"arm": "none", "strength": 0.0, **rates(plain["fiction"])}]
for arm, chosen in arms.items():
    for strength in (0.0125, 0.05, 0.2):
        table = answers(
            model, asked["fiction"], judge, steer(chosen, strength), max_new_tokens=16, batch_size=128
        )
        rows.append({"arm": arm, "strength": strength, **rates(table)})
draw.strength_curves(pd.DataFrame(rows))

# %% [markdown]
# ## Only where it is called for
#
# A condition looks at each prompt by itself, in the unsteered model, and lets a row be steered or not. Batch mates do not matter.

# %%
condition = Condition.fit(*told, false_positives=0.05)
conditional = steer(vectors["text"], 0.1, condition=condition)
pd.DataFrame(
    {
        "always": rates(
            answers(model, asked["fiction"], judge, steer(vectors["text"], 0.1), max_new_tokens=16)
        ),
        f"where {condition.site} > {condition.threshold:.2f}": rates(
            answers(model, asked["fiction"], judge, conditional, max_new_tokens=16)
        ),
    }
).T[["refused", "jsr", "over_refusal", "correct", "garbled"]]

# %%
prompts = [*asked["fiction"]["harmful"][:2], *asked["fiction"]["benign"][:2]]
pd.DataFrame(
    {
        "asked": [prompt.text for prompt in prompts],
        "plain": [a.text for a in generate(model, prompts, max_new_tokens=16, progress=False)],
        "steered": [
            a.text
            for a in generate(
                model, prompts, edits=steer(vectors["text"], 0.05), max_new_tokens=16, progress=False
            )
        ],
    }
)
