"""How alike are two items to the model that will be trained on them? By what it makes of them inside, or by where they would move it.

1. `self:encoder` and `self:projector`: the mean over the item's images or sound of the last encoder layer's output, or of what the
   projector hands to the decoder. `self:encoder=audio` where a model has two.
2. `self:layer=N`: `resid_post.N` at the last token of the prompt, the generation prompt included.
3. `gradient`: the gradient of the loss on the item's *response* over all linear weights, randomly projected and brought to unit length, so
   that short responses, whose gradients are long, do not carry a mean. Its measure is `mean`: the similarity to the harmful items' mean
   unit gradient (gradient matching; He et al. 2024, arXiv 2404.01099).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import torch

from interp.data.attachments import media_hash
from interp.data.prompts import Prompt
from interp.errors import EmbeddingError, UserError
from interp.geometry.nearest import Rows
from interp.methods.embedding import Encoder
from interp.methods.media_encoders import audio_content, image_content
from interp.models.activations import capture
from interp.models.factors import GIB, find_parameters
from interp.models.gradients import capture_gradients
from interp.models.model import Model
from interp.models.sites import Site
from interp.progress import progress as progress_bar

DIMENSION = 4096  # of a projected gradient


def own_encoder(model: Model, part: str) -> Encoder:
    """A part of the model itself: `encoder`, `projector` (with `=audio` or `=vision` where there are two) or `layer=N`.

    Raises UserError for another part, SiteError (when embedding) for a layer that there is not.
    """
    if match := re.fullmatch(r"layer=(\d+)", part):
        return _captured(model, part, Site(int(match[1]), "resid_post"), "last")
    if match := re.fullmatch(r"(encoder|projector)(?:=(audio|vision))?", part):
        modality = match[2] or _only_modality(model, part)
        if modality not in model.tower.encoders:
            raise UserError(f"self:{part}: {model.name} has no {modality} encoder")
        layer = len(model.tower.encoders[modality].blocks) - 1
        site = (
            Site(layer, "resid_post", modality) if match[1] == "encoder" else Site(0, "projector", modality)
        )
        return _captured(model, part, site, "mean")
    raise UserError(f"unknown encoder self:{part}; use self:encoder, self:projector or self:layer=N")


def gradient_encoder(
    model: Model, *, dimension: int = DIMENSION, seed: int = 0, memory: int = GIB
) -> Encoder:
    """Projected unit gradients of the loss on each item's response.

    Args:
        dimension, seed: of the projection, as in `capture_gradients`.
        memory: most bytes for the projections of all blocks at once; more items go in parts.
    """
    blocks = find_parameters(model, "all-linear")

    def rows(prompts: Sequence[Prompt]) -> Rows:
        step = max(1, memory // (len(blocks) * dimension * 4))
        found = []
        with progress_bar("gradients", total=len(prompts)) as advance:
            for start in range(0, len(prompts), step):
                part = prompts[start : start + step]
                total = capture_gradients(
                    model,
                    part,
                    keep="projections",
                    dimension=dimension,
                    seed=seed,
                    memory=memory,
                    progress=False,
                ).total
                lengths = torch.linalg.vector_norm(total, dim=1, keepdim=True)
                if (lengths == 0).any():
                    name = part[int((lengths == 0).nonzero()[0, 0])].id
                    raise EmbeddingError(
                        f"gradient: that of {name!r} is zero, which points nowhere; drop the item"
                    )
                found.append((total / lengths).float())
                advance(len(part))
        return torch.cat(found)

    return Encoder("gradient", _answered, rows, measure="mean")


def _captured(model: Model, part: str, site: Site, rule: str) -> Encoder:
    def rows(prompts: Sequence[Prompt]) -> Rows:
        return capture(model, prompts, site, rule)[site].float()

    content = {"audio": audio_content, "vision": image_content}.get(site.tower, _asked)
    return Encoder(f"self:{part}", content, rows)


def _only_modality(model: Model, part: str) -> str:
    found = list(model.tower.encoders)
    if len(found) != 1:
        has = (
            f"has {' and '.join(found)}: write self:{part}={found[0]}"
            if found
            else "neither sees nor hears; use self:layer=N"
        )
        raise UserError(f"self:{part}: {model.name} {has}")
    return found[0]


def _asked(prompt: Prompt) -> str:
    media = [media_hash(x) for x in (*prompt.images, *([] if prompt.audio is None else [prompt.audio]))]
    return json.dumps([prompt.text, prompt.system, media])


def _answered(prompt: Prompt) -> str:
    if not prompt.response:
        raise UserError("it has no response, whose gradient is asked for")
    return json.dumps([_asked(prompt), prompt.response])
