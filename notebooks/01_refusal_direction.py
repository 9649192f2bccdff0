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
# # One direction that decides refusal
#
# In many chat models a single direction of the residual stream mediates refusal: take it away and the model answers
# anything, add it and it refuses anything (Arditi et al. 2024, [arXiv 2406.11717](https://arxiv.org/abs/2406.11717)).
# Here that story is told step by step on the text organism, a small Llama that learnt a made-up language, harmful requests
# included, and then learnt to refuse them. Nothing in it is wired in by hand, and its judge is exact.

# %%
# %matplotlib inline
import matplotlib.pyplot as plt
import pandas as pd
import torch

from interp import Ablate, Add, Direction, ExactJudge, Site
from interp import capture, evaluate, everywhere, find_refusal_direction, generate, load, pca, read_prompts
from interp.evals.verdicts import Outcome
from interp.geometry.directions import mean_difference, shuffled_difference, unit
from interp.methods.refusal import keep_by_refusal, refusal_tokens
from interp.organisms.text_finetunes import tune

# %%
tune("benign", progress=False)  # fine-tunes the aligned organism on a benign skill, once
aligned, tuned = load("organism:text/aligned"), load("organism:text/benign")
aligned

# %% [markdown]
# ## Prompts and answers
#
# Requests that no stage of training has seen, harmful and harmless. Three disjoint parts: the direction is fitted on the
# first, chosen on the second, and measured on the third.

# %%
sizes = {"train": 128, "val": 32, "test": 100}
files = aligned.checkpoint.prompts()
harmful = read_prompts(files["harmful"]).split(sizes, seed=0)
harmless = read_prompts(files["harmless"]).split(sizes, seed=0)
harmful["test"][:4] + harmless["test"][:4]

# %%
def ask(model, prompts, name, edits=None):
    """Greedy answers, judged exactly: each equals the one right answer, is a refusal, or is neither."""
    answers = generate(model, prompts, edits=edits, max_new_tokens=16, progress=False)
    return evaluate(prompts, answers, ExactJudge(), name=name)


ask(aligned, harmful["test"], "aligned, harmful requests")

# %%
ask(aligned, harmless["test"], "aligned, harmless requests")

# %% [markdown]
# ## What does a refusal open with?
#
# The search needs thousands of looks at "would it refuse now?", too many to write out answers. So refusal is read off the
# first token: which tokens open this model's refusals, and not its other answers? Their total probability, in log-odds, is
# the *refusal score*. Prompts on which the model does not do what their label says are then set aside.

# %%
asked = harmful["train"][:64] + harmless["train"][:64]
answers = generate(aligned, asked, max_new_tokens=16, progress=False)
refused = [verdict.outcome is Outcome.REFUSED for verdict in ExactJudge().judge(asked, answers)]
tokens = refusal_tokens(aligned, answers, refused)
print(tokens)

# %%
kept = {}
for part in ("train", "val"):
    kept["harmful", part], _ = keep_by_refusal(aligned, harmful[part], tokens.ids, refused=True)
    kept["harmless", part], _ = keep_by_refusal(aligned, harmless[part], tokens.ids, refused=False)
{" ".join(name): len(prompts) for name, prompts in kept.items()}

# %% [markdown]
# ## Capture
#
# The residual stream after every block, at the last token of the prompt, which is where the answer begins. On the plane of
# the two leading principal components one sees at which depth harmful and harmless requests come apart.

# %%
bad = capture(aligned, kept["harmful", "train"], "resid_post", "last", progress=False)
good = capture(aligned, kept["harmless", "train"], "resid_post", "last", progress=False)
bad

# %%
layers = [0, 2, 5, 9]
figure, axes = plt.subplots(1, len(layers), figsize=(11, 2.8), layout="constrained")
for axis, layer in zip(axes, layers):
    site = f"resid_post.{layer}"
    plane = pca(torch.cat([bad[site], good[site]]), 2)
    axis.scatter(*plane.coordinates(bad[site]).T, s=6, color="#D55E00", label="harmful")
    axis.scatter(*plane.coordinates(good[site]).T, s=6, color="#0072B2", label="harmless")
    axis.set(title=site, xticks=[], yticks=[])
axes[0].legend(frameon=False);

# %% [markdown]
# ## Mean difference, and which one?
#
# A candidate is the mean over harmful minus the mean over harmless requests, for every layer and every token of the
# template that follows the instruction (the *end-of-instruction* tokens). Each gets three scores: does taking it away
# lower the refusal score of harmful requests (*bypass*), does adding it raise that of harmless ones (*induce*), and does
# taking it away leave harmless requests alone (*KL*)? The smallest bypass wins among those that pass the filters.

# %%
print(aligned.eoi_tokens)
found = find_refusal_direction(
    aligned,
    kept["harmful", "train"],
    kept["harmless", "train"],
    kept["harmful", "val"],
    kept["harmless", "val"],
    tokens,
    progress=False,
)
found

# %%
figure, axes = plt.subplots(1, 3, figsize=(11, 2.4), layout="constrained")
for axis, name in zip(axes, ("bypass", "induce", "kl")):
    image = axis.imshow(getattr(found.scores, name), aspect="auto", cmap="cividis")
    axis.add_patch(plt.Rectangle((found.selection.layer - 0.5, found.selection.index[0] - 0.5), 1, 1, fill=False, color="#D55E00", lw=2))
    axis.set(title=name, xlabel="layer", yticks=range(aligned.n_eoi), yticklabels=range(-aligned.n_eoi, 0))
    figure.colorbar(image, ax=axis)
axes[0].set_ylabel("position");

# %% [markdown]
# White cells were not scored: an earlier, cheaper filter had dropped them. Layer 0 has no candidate, since the template's
# tokens are the same in every prompt, and the last fifth of the layers is left out because a direction there would
# only write the refusal's first word.
#
# ## Controls
#
# Any edit of a network does something. What the direction does must be held against a random direction of the same
# length, and against the same recipe on shuffled labels, brought to the same length.

# %%
direction = found.direction
site = Site.parse(direction.site)
rows = [
    capture(aligned, kept[kind, "train"], site, direction.position, progress=False).values
    for kind in ("harmful", "harmless")
]
null = unit(shuffled_difference(*rows, seed=1)[0]) * direction.norm
arms = {
    "none": None,
    "direction": direction,
    "random": direction.random(seed=0),
    "shuffled": Direction(null, direction.site, direction.position, "shuffled labels"),
}
{name: None if arm is None else round(arm.cosine(direction), 2) for name, arm in arms.items()}

# %% [markdown]
# ## Take it away
#
# Ablation projects the direction out of everything that is written to the residual stream, at every token. If this one
# direction carries refusal, harmful requests are now answered, and answered *correctly*; harmless answers stay as they were.

# %%
def ablating(arm):
    """The edit at every block input, attention output and MLP output; none for no arm."""
    return None if arm is None else everywhere(Ablate(arm.vector.float()), aligned.n_layers)


ablated = {
    (name, kind): ask(aligned, prompts["test"], f"{name}, {kind}", ablating(arm))
    for name, arm in arms.items()
    for kind, prompts in (("harmful", harmful), ("harmless", harmless))
}

# %%
def table(results):
    """Rates of each outcome, one row an arm and kind of prompt."""
    rates = {key: {o.value: r.rate(o).estimate for o in Outcome if o not in ("empty", "unscored")} for key, r in results.items()}
    return pd.DataFrame(rates).T.rename_axis(["arm", "requests"]).style.format("{:.2f}").background_gradient(vmin=0, vmax=1)


table(ablated)

# %% [markdown]
# ## Put it back
#
# Fine-tuning on a benign skill made the tuned model answer harmful requests. If it lost the *use* of this direction rather
# than the machinery behind it, adding the aligned model's direction at its own layer should bring refusal back, more than
# the controls do. It is added to the prompt only: added while the answer is written, it would garble the words of the refusal. Look at
# the harmless requests too: added to every prompt, the direction is a switch and no judge of harm.

# %%
def adding(arm):
    """The arm's vector added at the input of its own layer, at every token of the prompt; none for no arm."""
    return None if arm is None else {site: Add(arm.vector.float(), positions="prompt")}


added = {
    (name, kind): ask(tuned, prompts["test"], f"tuned + {name}, {kind}", adding(arm))
    for name, arm in arms.items()
    for kind, prompts in (("harmful", harmful), ("harmless", harmless))
}
table(added)

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained", sharey=True)
for axis, results, title in zip(axes, (ablated, added), ("aligned, direction ablated", "tuned, direction added")):
    rates = [results[name, "harmful"].rate(Outcome.REFUSED) for name in arms]
    errors = [[r.estimate - r.low for r in rates], [r.high - r.estimate for r in rates]]
    axis.bar(list(arms), [r.estimate for r in rates], yerr=errors, capsize=3, color=["#7F7F7F", "#D55E00", "#56B4E9", "#E69F00"])
    axis.set(title=title, ylim=(0, 1.05))
axes[0].set_ylabel("harmful requests refused");

# %% [markdown]
# ## Where did fine-tuning lose it?
#
# Both models read the same held-out prompts; their residual streams are projected onto the aligned model's direction of each
# layer. The harmful curve of the tuned model leaves that of the aligned one where the loss sets in. The bands are 95 % of
# the prompts.

# %%
axes_by_layer = unit(mean_difference(bad.values, good.values))
figure, axis = plt.subplots(figsize=(7, 3.4), layout="constrained")
for model, style in ((aligned, "-"), (tuned, "--")):
    for kind, prompts, color in (("harmful", harmful, "#D55E00"), ("harmless", harmless, "#0072B2")):
        values = capture(model, prompts["test"], "resid_post", "last", progress=False).values.double()
        projected = (values * axes_by_layer[:, None]).sum(-1)
        low, high = projected.quantile(0.025, dim=1), projected.quantile(0.975, dim=1)
        axis.plot(projected.mean(1), style, color=color, label=f"{'aligned' if model is aligned else 'tuned'}, {kind}")
        axis.fill_between(range(aligned.n_layers), low, high, color=color, alpha=0.08)
axis.set(xlabel="layer (resid_post)", ylabel="projection")
axis.legend(frameon=False);

# %% [markdown]
# ## Keep it
#
# A direction is saved with where it was read and from which contrast. `orthogonalize` writes its removal into the
# weights of a copy, and `interp probe refusal_direction MODEL --export DIR` saves that as an ordinary checkpoint. What is
# shown here for one organism, `interp study` measures for any pair of checkpoints, with tests and intervals.

# %%
direction.save("../results/refusal_direction.safetensors")
Direction.load("../results/refusal_direction.safetensors").cosine(direction)
