"""Where in a network a value lives: a stream of a decoder block, in TransformerLens' vocabulary.

`resid_pre[l]` is the input of block `l` and `resid_post[l]` its output; `attn_out[l]` and `mlp_out[l]` are what the
block *adds* to the residual stream (after a post-norm where it has one). Layers count from 0.
Hugging Face's `hidden_states[i]` is never used: it is shifted by one and its last entry is taken after the final norm.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from interp.errors import SiteError

Stream = Literal["resid_pre", "attn_out", "mlp_out", "resid_post"]
STREAMS: tuple[str, ...] = get_args(Stream)  # in the order in which a block computes them


@dataclass(frozen=True, order=True)
class Site:
    """One stream of one decoder block, written `resid_post.5`."""

    layer: int
    stream: str

    def __post_init__(self) -> None:
        if self.stream not in STREAMS:
            raise SiteError(f"unknown stream {self.stream!r}; choose one of {', '.join(STREAMS)}")
        if self.layer < 0:
            raise SiteError(f"layer {self.layer} of {self.stream} is negative; layers count from 0")

    @classmethod
    def parse(cls, text: str | Site) -> Site:
        """The site named by `stream.layer`; raises SiteError on anything else."""
        if isinstance(text, Site):
            return text
        stream, dot, layer = text.partition(".")
        if not dot or not layer.isdecimal():
            raise SiteError(f"site {text!r} is not of the form stream.layer, such as resid_post.5")
        return cls(int(layer), stream)

    def __str__(self) -> str:
        return f"{self.stream}.{self.layer}"


def all_layers(n_layers: int, streams: str | Iterable[str]) -> list[Site]:
    """Every layer of the given stream or streams, layer by layer."""
    names = [streams] if isinstance(streams, str) else list(streams)
    return [Site(layer, stream) for layer in range(n_layers) for stream in names]


def resolve(sites: str | Site | Sequence[str | Site], n_layers: int) -> list[Site]:
    """Sites from `resid_post` (all layers), `resid_post.5`, a Site or a list of those; checked against the depth.

    Raises SiteError for an unknown stream or a layer the model does not have.
    """
    wanted: list[Site] = []
    for item in [sites] if isinstance(sites, str | Site) else sites:
        if isinstance(item, str) and "." not in item:
            wanted += all_layers(n_layers, item)
        else:
            wanted.append(Site.parse(item))
    for site in wanted:
        if site.layer >= n_layers:
            raise SiteError(f"site {site} does not exist: the model has layers 0 to {n_layers - 1}")
    if not wanted:
        raise SiteError("no sites asked for; name at least one, such as resid_post")
    return list(dict.fromkeys(wanted))
