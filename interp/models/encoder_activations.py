"""What do an encoder and its projector make of a prompt's images or sound? Their vectors, one prompt at a time.

Encoders run on images and not on prompts, some on all patches of a batch in a row: a prompt alone is a batch whose every vector is
its own. Frames that only fill up a spectrogram are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp.data.prompts import Prompt
from interp.errors import NonFiniteError, SiteError
from interp.models.hooks import StopForward
from interp.models.model import Model
from interp.models.sites import PROJECTOR, Site
from interp.models.tokens import Tokens
from interp.progress import progress as progress_bar

RULES = ("mean", "all")
FRAME_MASKS = ("feature_attention_mask", "input_features_mask")


def encoder_rows(
    model: Model, prompts: Sequence[Prompt], tokens: Sequence[Tokens], sites: Sequence[Site], rule: str | int,
    *, progress: bool,
) -> list[Float[Tensor, "site row d"]]:  # fmt: skip
    """For each prompt its vectors at the sites, all of one encoder, in the model's dtype on the CPU; with `mean` their mean.

    Raises SiteError for another rule and for a prompt without media of that kind, NonFiniteError naming site and prompt.
    """
    if rule not in RULES:
        raise SiteError(
            f"{sites[0]} is of an encoder; its position rules are {' and '.join(RULES)}, not {rule!r}"
        )
    found = []
    with progress_bar("activations", total=len(prompts), enabled=progress) as advance:
        for prompt, row in zip(prompts, tokens, strict=True):
            values = _forward(model, prompt, row, sites)
            if not torch.isfinite(values).all():
                bad = next(
                    s for s, value in zip(sites, values, strict=True) if not torch.isfinite(value).all()
                )
                raise NonFiniteError(
                    f"activations at {bad} are NaN or infinite for prompt {prompt.id!r}; check the checkpoint, or load it in "
                    "bfloat16 or float32"
                )
            if rule == "mean":
                values = values.float().mean(1, keepdim=True).to(values.dtype)
            found.append(values.cpu())
            advance(1)
    return found


@torch.no_grad()
def _forward(
    model: Model, prompt: Prompt, tokens: Tokens, sites: Sequence[Site]
) -> Float[Tensor, "site row d"]:
    encoder = model.tower.encoders[sites[0].tower]
    standing = sum(token == encoder.token_id for token in tokens)
    if not standing:
        raise SiteError(
            f"prompt {prompt.id!r} holds nothing for the {encoder.modality} encoder of {model.name}"
        )
    values: dict[Site, list[Tensor]] = {site: [] for site in sites}

    def keep(site: Site, value: Tensor) -> None:
        # cloned: some encoders change a block's output in place afterwards
        values[site].append(_own(site, value.detach().clone(), tokens, standing))

    def stop(*_: object) -> None:
        raise StopForward

    handles = [model.tower.blocks[0].register_forward_pre_hook(stop)]

    for site in sites:
        module = encoder.module(site)
        if site.stream == "resid_pre":
            handles.append(module.register_forward_pre_hook(
                lambda _, args, kwargs, site=site: keep(site, args[0] if args else kwargs["hidden_states"]),
                with_kwargs=True,
            ))  # fmt: skip
        else:
            handles.append(module.register_forward_hook(
                lambda _, args, output, site=site: keep(site, output[0] if isinstance(output, tuple) else output)
            ))  # fmt: skip
    try:
        model.module(**model.pad([tokens], [prompt.id]).inputs(), use_cache=False)
    except StopForward:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack([torch.cat(values[site]) for site in sites])


def _own(site: Site, value: Tensor, tokens: Tokens, standing: int) -> Float[Tensor, "row d"]:
    """The vectors without those of frames that only fill up."""
    mask = next((tokens.media[name] for name in FRAME_MASKS if name in tokens.media), None)
    if mask is None or value.ndim < 3:
        return value.reshape(-1, value.shape[-1])
    if site.stream == PROJECTOR:
        return value.reshape(-1, value.shape[-1])[:standing]
    share = mask.double().mean(-1).tolist()
    return torch.cat(
        [item[: math.ceil(part * len(item) - 1e-6)] for item, part in zip(value, share, strict=True)]
    )
