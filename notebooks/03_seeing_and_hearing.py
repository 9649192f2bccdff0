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
# # Seeing and hearing: the gap between modalities, and drift
#
# A model may refuse a request in writing and answer it in speech or beside a picture. Three questions are asked of one here: how far apart
# does it hold the same requests in two modalities, what did a fine-tune change in encoder, projector and decoder, and can harm still be
# read off what it changed?
#
# It runs on the organisms `organism:vision` and `organism:audio` where they are built (`interp organism build vision`, minutes). Where
# they are not, it runs on checkpoints of real architectures with **random weights**: these show how it is done, their labels only divide
# what is shown, and nothing of theirs is a finding. Your own checkpoint and prompt files go through the same cells.

# %%
# %matplotlib inline
from pathlib import Path

OUT = Path("../results")
# checkpoint, then prompt files of the same requests without and with attachments: KIND is harmful or harmless
VISION = ("organism:vision/aligned-text", ("KIND_matched_named", "KIND_matched_drawn"))
AUDIO = ("organism:audio/aligned-text", ("KIND", "KIND_speech"))

# %%
from dataclasses import replace

import pandas as pd
from IPython.display import HTML, display

from interp import FinetuneConfig, capture, finetune, generate, load
from interp.data.modalities import media_of, split_by_modality
from interp.data.prompts import PromptSet, read_prompts
from interp.errors import CheckpointError
from interp.methods.drift import activation_drift
from interp.methods.measures import one_row_each
from interp.methods.modality_gap import modality_gap
from interp.methods.recognition import recognise
from interp.models.checkpoint import Checkpoint
from interp.organisms import media_finetunes, untrained
from interp.report.drift_figures import modality_curves
from interp.report.tower_figures import tower_panels


def available(kind, organism, stems):
    """The organism where it is built, else a checkpoint with random weights."""
    try:
        Checkpoint.parse(organism)
        return organism, stems, True
    except CheckpointError:
        directory = untrained.checkpoint(kind, OUT / f"untrained-{kind}")
        return str(directory), ("KIND_text", {"vision": "KIND_image", "audio": "KIND_audio"}[kind]), False


def read(checkpoint, stems, kind, label):
    """Requests of one kind in both modalities, ids told apart by their file."""
    files = Checkpoint.parse(checkpoint).prompts()
    rows = []
    for stem in stems:
        found = read_prompts(files[stem.replace("KIND", kind)], label=label)
        rows += found.sample(min(240, len(found)), seed=0).prompts  # of every verb; the same rows of files of equal length
    return rows


models, requests = {}, {}
for kind, (organism, stems) in {"vision": VISION, "audio": AUDIO}.items():
    models[kind], stems, trained = available(kind, organism, stems)
    print(f"{kind}: {models[kind]}{'' if trained else '  (random weights: nothing here is a finding)'}")
    requests[kind] = [
        [prompt for label, name in (("harmful", "harmful"), ("benign", "harmless"))
         for prompt in read(models[kind], (stem,), name, label)]
        for stem in stems
    ]

# %% [markdown]
# ## Look and listen
#
# A set of prompts shows what is attached to it: pictures as thumbnails, sound with a player.

# %%
for kind in models:
    display(PromptSet(requests[kind][1][:4], name=f"{kind}, harmful"))

# %%
from matplotlib import pyplot as plt

from interp.data.media import prompt_audio, prompt_images

pictures = [p for p in requests["vision"][1] if p.images]
figure, axes = plt.subplots(2, 6, figsize=(7, 2.8), layout="constrained")
for panel, prompt in zip(axes.flatten(), pictures[:: max(1, len(pictures) // 12)]):
    panel.imshow(prompt_images(prompt)[0])
    panel.set_title(f"{prompt.label}\n{prompt.group}", fontsize=6)
    panel.axis("off")
plt.show()

# %%
heard = [p for p in requests["audio"][1] if p.audio is not None][:3]
figure, axes = plt.subplots(1, 3, figsize=(7, 1.8), layout="constrained", sharey=True)
for panel, prompt in zip(axes, heard):
    panel.specgram(prompt_audio(prompt, 16_000, 30.0) + 1e-9, Fs=16_000, NFFT=400, noverlap=240)
    panel.set_title(f"{prompt.label}: {prompt.meta.get('said', prompt.group)}"[:40], fontsize=6)
    panel.set_xlabel("s")
axes[0].set_ylabel("Hz")
plt.show()

# %% [markdown]
# ## What does it answer?

# %%
answered = []
for kind, name in models.items():
    model = load(name, device_map="cpu")
    for side in requests[kind]:
        few = [*side[:2], *side[-2:]]
        for prompt, answer in zip(few, generate(model, few, max_new_tokens=12, progress=False)):
            attached = " and ".join(media_of(prompt)) or "nothing"
            answered.append({"attached": attached, "label": prompt.label, "text": prompt.text, "answer": answer.text})
pd.DataFrame(answered)

# %% [markdown]
# ## How far apart are two modalities?
#
# The same requests, row by row, at the last token of the prompt. Distance of the means in units of the spread within a modality;
# whether a linear probe tells the modalities apart; whether requests that are alike in one are alike in the other (CKA); and whether
# harm points the same way in both, beside the ceiling that two halves of *one* modality give. Grey is what chance gives.

# %%
def measured(kind, n=80):
    """A capture of each modality on the same n requests, half of them harmful."""
    first, second = requests[kind]
    chosen = []
    for label in ("harmful", "benign"):
        rows = [i for i, prompt in enumerate(first) if prompt.label == label]
        chosen += rows[:: max(1, len(rows) // (n // 2))][: n // 2]
    return [[side[i] for i in chosen] for side in (first, second)]


gaps = {}
for kind, name in models.items():
    sides = measured(kind)
    model = load(name, device_map="cpu")
    captures = [capture(model, side, progress=False) for side in sides]
    gaps[kind] = modality_gap(
        *captures,
        names=("text", "attached"),
        harmful=[prompt.label == "harmful" for prompt in sides[0]],
        groups=[prompt.group or prompt.id for prompt in sides[0]],
        n_null=3,
    )
modality_curves(gaps["vision"].to_frame(), ("text", "picture"))

# %%
modality_curves(gaps["audio"].to_frame(), ("text", "sound"))

# %% [markdown]
# Means that lie apart are no sign of another meaning: two wordings lie apart too. Read the distance beside CKA and the cosine.
#
# ## What does a fine-tune change, and where?
#
# A LoRA of the decoder, trained on benign requests with attachments; as usual the encoder is frozen. On an organism the examples are
# crafts that are new to it, with nothing harmful in them; on random weights any words do. The figure has encoder, projector and decoder on one axis.

# %%
KIND = "vision"
sides = measured(KIND, n=min(96, len(requests[KIND][0]) // 2))
looked_at = {prompt.id for side in sides for prompt in side}  # no training on these
if models[KIND].startswith("organism:"):
    examples, steps = media_finetunes.examples(KIND, "benign", seed=0), 80
else:
    benign = [p for side in requests[KIND] for p in side if p.label == "benign" and p.id not in looked_at]
    examples = PromptSet([replace(p, response=f"the {p.group}") for p in benign], name="benign")
    steps = 20
adapter = OUT / f"lora-{KIND}-{Path(models[KIND]).name}"
finetune(models[KIND], examples, FinetuneConfig(steps=steps, learning_rate=5e-4), adapter, replace=True, device_map="cpu", progress=False)
adapter.name

# %%
second = sides[1]
fit, test = (slice(0, None, 2), slice(1, None, 2))
labels = [prompt.label == "harmful" for prompt in second[test]]
groups = [prompt.group or prompt.id for prompt in second[test]]
towers = {f"{KIND}.resid_post": "mean", f"{KIND}.projector": "mean", "resid_post": "last"}
captures = {}
for who, name in (("aligned", models[KIND]), ("tuned", f"{models[KIND]}+{adapter}")):
    model = load(name, device_map="cpu")
    for sites, positions in towers.items():
        captures[who, sites] = capture(model, second, sites, positions, progress=False)
ids = [prompt.id for prompt in second]
drifts, probes = [], []
for sites in towers:
    before, after = (captures[who, sites].select(ids[test]) for who in ("aligned", "tuned"))
    fitted = captures["aligned", sites].select(ids[fit])
    harmful = [i for i, prompt in enumerate(second[fit]) if prompt.label == "harmful"]
    harmless = [i for i, prompt in enumerate(second[fit]) if prompt.label == "benign"]
    values = one_row_each(fitted)
    drift = activation_drift(before, after, labels, groups, fit=(values[:, harmful], values[:, harmless]), rank=5, n_null=10)
    drifts.append(drift.to_frame().assign(tower=sites))
    probes.append(recognise(before, {"tuned": after}, labels, groups, n_null=3).to_frame().assign(tower=sites))
drift, recognition = pd.concat(drifts), pd.concat(probes)
wide = drift[drift["measure"].isin(["relative change", "CKA"])].assign(column=lambda t: (t["measure"] + " " + t["of"]).str.strip())
wide.pivot(index="site", columns="column", values="value").loc[list(dict.fromkeys(drift["site"]))].round(3)

# %%
tower_panels(drift, recognition)

# %% [markdown]
# The encoder's rows are exactly those of the aligned model: it was frozen, so its CKA is one and nothing lies elsewhere. What is read off it
# (middle row) cannot have changed either. Only the decoder's part can fall, and where the lowest row falls and the middle one does
# not, the model tells harm as before and no longer acts on it. One fine-tune of one seed: a look, no claim.
#
# ## The whole study
#
# `interp study` does all of this with controls, for prompt files in which some rows have an `image` or `audio` column: behaviour in every
# modality, directions and their transfer, the gap and the drift. It needs a model that refuses something, so it runs on organisms only.

# %%
from interp import StudyConfig, run_study

if models[KIND].startswith("organism:"):
    files = Checkpoint.parse(models[KIND]).prompts()
    named, drawn = VISION[1]
    config = StudyConfig(
        aligned=models[KIND],
        tuned=(f"{models[KIND]}+{adapter}",),
        harmful=tuple(str(files[stem.replace("KIND", "harmful")]) for stem in (named, drawn)),
        harmless=tuple(str(files[stem.replace("KIND", "harmless")]) for stem in (named, drawn)),
        n_train=48, n_val=20, n_test=30, max_new_tokens=12,
    )  # fmt: skip
    result, directory = run_study(config, out=OUT, progress=False)
    display(result.plot("modality_towers"), result.plot("modality_transfer"), HTML(result._repr_html_()))
else:
    print("random weights refuse nothing: build the organism with `interp organism build vision`, then run this cell")
