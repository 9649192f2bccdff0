"""Where in a network a value lives: a stream of a block, in TransformerLens' vocabulary.

`resid_pre[l]` is the input of block `l` and `resid_post[l]` its output; `attn_out[l]` and `mlp_out[l]` are what the
block *adds* to the residual stream (after a post-norm where it has one); `z[l]` is what its attention heads hand to their
common output matrix, head after head, as wide as all of them. Layers count from 0.
Blocks are the decoder's, written `resid_post.5`, or those of the encoder of what is seen or heard, `vision.resid_post.3`,
`audio.resid_post.3`; `vision.projector` is what the projector hands to the decoder. `encoder.resid_post.3` and `projector` name
the same in a model with one encoder.
Hugging Face's `hidden_states[i]` is never used: it is shifted by one and its last entry is taken after the final norm.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from interp.errors import SiteError

Stream = Literal["resid_pre", "z", "attn_out", "mlp_out", "resid_post"]
STREAMS: tuple[str, ...] = get_args(Stream)  # in the order in which a block computes them
DECODER, ENCODER, PROJECTOR = "decoder", "encoder", "projector"
HEADS = "z"
INPUTS = ("resid_pre", HEADS)  # what a module is given; the other streams are what one returns
MODALITIES = ("vision", "audio")
ENCODER_STREAMS = ("resid_pre", "resid_post", PROJECTOR)


@dataclass(frozen=True, order=True)
class Site:
    """One stream of one block, written `resid_post.5`, or `vision.resid_post.3` in an encoder; a projector has layer 0."""

    layer: int
    stream: str
    tower: str = DECODER

    def __post_init__(self) -> None:
        if self.tower not in (DECODER, ENCODER, *MODALITIES):
            raise SiteError(f"unknown tower {self.tower!r}; use {', '.join((ENCODER, *MODALITIES))}")
        known = STREAMS if self.tower == DECODER else ENCODER_STREAMS
        if self.stream not in known:
            raise SiteError(
                f"unknown stream {self.stream!r} of the {self.tower}; choose one of {', '.join(known)}"
            )
        if self.layer < 0 or (self.stream == PROJECTOR and self.layer):
            raise SiteError(
                f"layer {self.layer} of {self.stream}: layers count from 0, and a projector has one"
            )

    @classmethod
    def parse(cls, text: str | Site) -> Site:
        """The site named by `stream.layer` or `tower.stream.layer`; raises SiteError on anything else."""
        if isinstance(text, Site):
            return text
        tower, name = _tower_of(text)
        if name == PROJECTOR:
            return cls(0, name, tower)
        stream, dot, layer = name.partition(".")
        if not dot or not layer.isdecimal():
            raise SiteError(
                f"site {text!r} is not of the form stream.layer, such as resid_post.5 or vision.resid_post.3"
            )
        return cls(int(layer), stream, tower)

    def __str__(self) -> str:
        prefix = "" if self.tower == DECODER else f"{self.tower}."
        return f"{prefix}{self.stream}" + ("" if self.stream == PROJECTOR else f".{self.layer}")


def _tower_of(text: str) -> tuple[str, str]:
    """Tower and the rest of a site's name."""
    if text == PROJECTOR:
        return ENCODER, PROJECTOR
    first, dot, rest = text.partition(".")
    return (first, rest) if dot and first in (ENCODER, *MODALITIES) else (DECODER, text)


def all_layers(n_layers: int, streams: str | Iterable[str], tower: str = DECODER) -> list[Site]:
    """Every layer of the given stream or streams, layer by layer."""
    names = [streams] if isinstance(streams, str) else list(streams)
    return [Site(layer, stream, tower) for layer in range(n_layers) for stream in names]


def resolve(
    sites: str | Site | Sequence[str | Site], n_layers: int, encoders: Mapping[str, int] | None = None
) -> list[Site]:
    """Sites from `resid_post` (all layers), `resid_post.5`, a Site or a list of those; checked against the depth.

    Args:
        n_layers: of the decoder.
        encoders: layers of each encoder, `{"vision": 27}`.

    Raises SiteError for an unknown stream, a layer or an encoder that the model does not have, and sites of several towers.
    """
    depths = {DECODER: n_layers, **(encoders or {})}
    wanted: list[Site] = []
    for item in [sites] if isinstance(sites, str | Site) else sites:
        if isinstance(item, Site):
            wanted.append(_named(item, depths))
            continue
        tower, name = _tower_of(item)
        if "." in name or name == PROJECTOR:
            wanted.append(_named(Site.parse(item), depths))
        else:
            tower = _named(Site(0, name, tower), depths).tower
            wanted += all_layers(depths[tower], name, tower)
    for site in wanted:
        if site.stream != PROJECTOR and site.layer >= depths[site.tower]:
            where = "model" if site.tower == DECODER else f"{site.tower} encoder"
            raise SiteError(
                f"site {site} does not exist: the {where} has layers 0 to {depths[site.tower] - 1}"
            )
    if not wanted:
        raise SiteError("no sites asked for; name at least one, such as resid_post")
    found = list(dict.fromkeys(wanted))
    if len(groups := {_kind(site) for site in found}) > 1:
        names = " and ".join(sorted(str(next(s for s in found if _kind(s) == g)) for g in groups))
        raise SiteError(
            f"{names} differ in width and in tokens; capture each tower, and a projector, by itself, heads too"
        )
    return found


def _kind(site: Site) -> tuple[str, str]:
    """Sites of one kind have the same width and tokens."""
    return site.tower, site.stream if site.stream in (PROJECTOR, HEADS) else "resid"


def _named(site: Site, depths: Mapping[str, int]) -> Site:
    """The site with `encoder` replaced by the model's only encoder; raises SiteError for a tower that there is not."""
    encoders = [tower for tower in depths if tower != DECODER]
    if site.tower == ENCODER and len(encoders) == 1:
        return replace(site, tower=encoders[0])
    if site.tower not in depths:
        has = f"it has {' and '.join(encoders)}" if encoders else "it has a decoder only"
        raise SiteError(f"site {site} does not exist in this model: {has}")
    return site
