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
# # Where is refusal decided, and where did a fine-tune break it?
#
# Steering shows what a direction *can* do. Activation patching asks where the model itself decides: values of a run in which it refuses are
# put into a run in which it does not, one place at a time, and the log-odds of opening with a refusal say what came along. The pairs are
# harmful requests and benign twins that differ in one word, the verb, and that no stage of training has seen.

# %%
# %matplotlib inline
from interp import generate, load, read_prompts
from interp.locate.subject import prompts_of, text_twins
from interp.methods.attribution import attribute
from interp.methods.head_patterns import head_patterns, top_heads
from interp.methods.logit_difference import refusal_metric, unembedding
from interp.methods.patch_grid import agreement
from interp.methods.patch_pairs import same_prompts, shuffled
from interp.methods.patch_runs import Component
from interp.methods.patching import patch
from interp.methods.transplant import block_parts, changed, metric_values, transplant
from interp.organisms.text_finetunes import tune
from interp.report.patching_figures import block_curves, layer_curves, patch_maps, pattern_panels

# %%
tune("benign", progress=False)
aligned, tuned = load("organism:text/aligned"), load("organism:text/benign")
pairs = text_twins(48)
asked = prompts_of(pairs)
answers = generate(aligned, asked, max_new_tokens=16, progress=False)
refused = [answer.text in prompt.truth.refusals for prompt, answer in zip(asked, answers, strict=True)]
metric = refusal_metric(aligned, answers, refused)
# only pairs that show the contrast: the harmful one refused, its twin answered
pairs = [pair for i, pair in enumerate(pairs) if refused[i] and not refused[len(pairs) + i]]
print(metric, f"{len(pairs)} pairs", pairs[0].clean.text, pairs[0].corrupt.text, sep="\n")

# %% [markdown]
# ## Layer by position
#
# Exact: every cell is a run of its own that goes on from the patched place. 1 (orange) is all of the gap between the two runs. The verb
# matters early, the last token late; what carries it from one to the other lies in between.

# %%
grids = {
    stream: patch(aligned, pairs, metric, stream, progress=False)
    for stream in ("resid_pre", "attn_out", "mlp_out")
}
patch_maps([grid.to_frame() for grid in grids.values()])

# %% [markdown]
# ## Guards
#
# Putting the whole stream of a late layer in its place restores the metric by construction. So: everything but the directions that the metric
# reads off the last layer; and, as the null, values of another benign request.

# %%
guard = Component(unembedding(aligned, metric), outside=True)
last = {"whole stream": patch(aligned, pairs, metric, positions="last", progress=False).to_frame()}
last["without what the metric reads"] = patch(
    aligned, pairs, metric, positions="last", component=guard, progress=False
).to_frame()
null = patch(aligned, shuffled(aligned, pairs), metric, positions="last", progress=False).to_frame()
layer_curves(last, null=null)

# %% [markdown]
# ## Heads, and where they look

# %%
heads = patch(aligned, pairs, metric, "z", progress=False)
best = top_heads(heads.mean(), 3)
print(best)
heads.plot()

# %%
patterns = head_patterns(aligned, pairs[0].clean, best)
pattern_panels(patterns.patterns, patterns.heads, patterns.tokens)

# %% [markdown]
# ## Everything at once, estimated
#
# Attribution patching needs two forward passes and a backward pass for all places together. It is a first-order estimate; its rank correlation
# with the exact grid says how far to trust it.

# %%
estimate = attribute(aligned, pairs, metric, progress=False)
{stream: str(agreement(grid, estimate[stream])) for stream, grid in grids.items()}

# %% [markdown]
# ## Between checkpoints: where the benign fine-tune broke it
#
# The same harmful requests, the aligned model's values put into the tuned one. Requests that lost their refusal and requests that are still
# refused are shown apart: what moves both alike is no repair.

# %%
harmful = read_prompts(aligned.checkpoint.prompts()["harmful"]).sample(200, seed=0)
judged = {}
for name, model in (("aligned", aligned), ("tuned", tuned)):
    made = generate(model, harmful, max_new_tokens=16, progress=False)
    judged[name] = [
        answer.text in prompt.truth.refusals for prompt, answer in zip(harmful, made, strict=True)
    ]
both = list(zip(harmful, judged["aligned"], judged["tuned"], strict=True))
lost = [prompt for prompt, before, after in both if before and not after][:48]
kept = [prompt for prompt, before, after in both if before and after][:48]
print(f"{len(lost)} lost, {len(kept)} kept")

# %%
between = {
    name: patch(
        tuned,
        same_prompts(prompts),
        metric,
        positions="last",
        source=aligned,
        component=guard,
        progress=False,
    ).to_frame()
    for name, prompts in (("lost", lost), ("still refused", kept))
    if len(prompts) >= 4
}
layer_curves(between)

# %% [markdown]
# ## Between checkpoints: which weights
#
# Blocks of the aligned model in the place of the tuned ones, alone and cumulated from both ends. One block alone may do little although a few
# together do everything.

# %%
parts = block_parts(tuned, changed(tuned, aligned))
measures = {"log-odds": (lost, lambda model, prompts: metric_values(model, prompts, metric))}
blocks = transplant(tuned, aligned, parts, measures, axis="blocks", progress=False)["log-odds"]
block_curves({"lost requests": blocks.to_frame()})
