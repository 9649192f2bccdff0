"""What does the network compute on these prompts? Residual-stream values at chosen sites and token positions.

1. Sort the prompts into batches of similar length (less padding, less arithmetic).
2. Run the decoder with a hook at each site that keeps only the wanted rows; stop after the last wanted block.
3. Keep the rows in memory, or write each batch as one safetensors shard, so that a killed capture resumes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from interp.data.prompts import Prompt
from interp.errors import NonFiniteError, ResultError, SiteError
from interp.files import atomic_write, save_json
from interp.models.batches import run_batches
from interp.models.encoder_activations import encoder_rows
from interp.models.hooks import reading, stopping_after, under_edits
from interp.models.model import Batch, Model
from interp.models.positions import Rule, parse_rule, wanted_tokens
from interp.models.sites import DECODER, HEADS, Site, resolve
from interp.models.tokens import Tokens
from interp.progress import progress as progress_bar

INDEX = "activations.json"


@dataclass(frozen=True, eq=False)
class Activations:
    """Values of a model at sites on prompts.

    `values` is (site, row, d_model); the rows of prompt `i` are `offsets[i]:offsets[i + 1]`, one for the rules `last`,
    `mean` and an index, `n_eoi` for `eoi`, as many as tokens for `all`.
    """

    values: Float[Tensor, "site row d_model"]
    offsets: Int[Tensor, " prompt_plus_one"]
    sites: tuple[Site, ...]
    prompt_ids: tuple[str, ...]
    positions: str
    model: str

    def __post_init__(self) -> None:
        if len(self.sites) != self.values.shape[0] or len(self.prompt_ids) + 1 != len(self.offsets):
            raise SiteError(
                "activations whose sites or prompts do not match their values; capture them again"
            )

    def __getitem__(self, site: str | Site) -> Float[Tensor, "row d_model"]:
        """Rows of one site, `acts["resid_post.5"]`; raises SiteError when it was not captured."""
        site = Site.parse(site)
        if site not in self.sites:
            raise SiteError(f"{site} was not captured; there are {', '.join(map(str, self.sites))}")
        return self.values[self.sites.index(site)]

    def by_prompt(self) -> Float[Tensor, "site prompt pos d_model"]:
        """The values with a position axis; raises SiteError when prompts have different numbers of rows."""
        counts = self.offsets.diff()
        if len(counts.unique()) > 1:
            raise SiteError(f"rows per prompt differ under the rule {self.positions!r}; use .rows(prompt_id)")
        return self.values.unflatten(1, (len(self.prompt_ids), int(counts[0])))

    def rows(self, prompt_id: str) -> Float[Tensor, "site pos d_model"]:
        """All rows of one prompt."""
        i = self.prompt_ids.index(prompt_id)
        return self.values[:, self.offsets[i] : self.offsets[i + 1]]

    def select(self, prompt_ids: Sequence[str]) -> Activations:
        """The same sites for some of the prompts, in the given order."""
        place = {name: i for i, name in enumerate(self.prompt_ids)}
        missing = [name for name in prompt_ids if name not in place]
        if missing:
            raise SiteError(f"prompt {missing[0]!r} was not captured")
        chosen = [place[name] for name in prompt_ids]
        offsets = torch.cat([torch.zeros(1, dtype=torch.long), self.offsets.diff()[chosen].cumsum(0)])
        return Activations(
            self.values[:, _rows_of(self.offsets, chosen)],
            offsets,
            self.sites,
            tuple(prompt_ids),
            self.positions,
            self.model,
        )

    def __repr__(self) -> str:
        return (
            f"Activations({self.model}: {len(self.prompt_ids)} prompts, {len(self.sites)} sites × {self.values.shape[-1]}, "
            f"{self.positions})"
        )


def capture(
    model: Model,
    prompts: Sequence[Prompt],
    sites: str | Site | Sequence[str | Site] = "resid_post",
    positions: Rule = "last",
    *,
    batch_size: int = 64,
    batch_tokens: int = 4096,
    out: Path | None = None,
    progress: bool = True,
) -> Activations:
    """Values of `model` at `sites` on `prompts`, in the model's dtype on the CPU.

    Args:
        sites: `resid_post` (all layers), `resid_post.5`, a Site, or a list of those.
            Of one tower: the decoder, or an encoder or its projector (`vision.resid_post.3`, `projector`), whose rules are
            `mean` and `all` over the vectors of the prompt's media.
        positions: `last` (last prompt token), `eoi` (the template's tokens after the instruction), `mean` or `all`
            tokens of the prompt, or an index into the prompt's tokens (negative from its end). `mean` and `all` of only some
            tokens: `mean-image`, `image`, and so on of `image`, `audio`, `text` (what is neither) and `instruction` (the user's own
            words: neither, nor the template's).
        batch_size, batch_tokens: most rows and most padded tokens a batch; halved when memory runs out.
        out: directory for shards: streamed there, resumed after a kill, read back by `StoredActivations`.

    Raises SiteError for unknown sites or positions and for shards of a model under edits, which would be taken for
    those of the plain model; NonFiniteError naming site and prompt, UserError for bad prompts.
    """
    if out is not None and under_edits(model):
        raise SiteError(f"{model.name} is under edits; capture in memory, or to {out} outside of them")
    encoders = {name: len(encoder.blocks) for name, encoder in model.tower.encoders.items()}
    chosen = resolve(sites, model.n_layers, encoders)
    tokens = [model.token_ids(prompt) for prompt in prompts]
    if not tokens:
        raise SiteError("no prompts to capture; pass at least one")
    ids = tuple(prompt.id for prompt in prompts)
    if chosen[0].tower != DECODER:
        if out is not None:
            raise SiteError(
                f"{chosen[0]} is of an encoder, which is captured in memory only; leave `out` away"
            )
        parts = encoder_rows(model, prompts, tokens, chosen, positions, progress=progress)
        ends = torch.tensor([0, *(part.shape[1] for part in parts)]).cumsum(0)
        return Activations(torch.cat(parts, 1), ends, tuple(chosen), ids, str(positions), model.name)
    _, mean = parse_rule(positions)
    wanted = [wanted_tokens(positions, *pair, model) for pair in zip(prompts, tokens, strict=True)]
    counts = torch.tensor([1 if mean else int(rows.sum()) for rows in wanted])
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
    batches = model.batches(tokens, batch_size, batch_tokens)
    shards = None if out is None else _Shards(Path(out), chosen, ids, offsets, str(positions), model, tokens)
    if shards is not None:
        batches = [rest for batch in batches if (rest := [i for i in batch if i not in shards.done])]
    values = None
    if shards is None:
        width = model.tower.head_width if chosen[0].stream == HEADS else model.d_model
        values = torch.empty(len(chosen), int(offsets[-1]), width, dtype=model.dtype)

    def step(batch: list[int]) -> Float[Tensor, "site row d_model"]:
        padded = model.pad([tokens[i] for i in batch], [ids[i] for i in batch])
        return _forward(model, padded, chosen, [wanted[i] for i in batch], mean)

    with progress_bar("activations", total=len(prompts), enabled=progress) as advance:
        for batch, found in run_batches(batches, step):
            if not torch.isfinite(found).all():
                _raise_non_finite(found, chosen, [ids[i] for i in batch], [int(counts[i]) for i in batch])
            if shards is not None:
                shards.write(batch, found)
            elif values is not None:
                place = _rows_of(offsets, batch)
                values[:, place] = found
            advance(len(batch))
    if shards is not None:
        return shards.finish().load()
    assert values is not None
    return Activations(values, offsets, tuple(chosen), ids, str(positions), model.name)


def _reader(
    wanted: Sequence[Tensor], width: int, mean: bool, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """A function from a site's (batch, pos, d_model) to the wanted (row, d_model), of left-padded rows."""
    rows = torch.cat([torch.full((int(part.sum()),), i) for i, part in enumerate(wanted)]).to(device)
    places = torch.cat([part.nonzero()[:, 0] + width - len(part) for part in wanted]).to(device)
    if not mean:
        return lambda value: value[rows, places]
    share = torch.cat([torch.full((n,), 1 / n) for n in (int(part.sum()) for part in wanted)]).to(device)

    def average(value: Tensor) -> Tensor:
        total = torch.zeros(len(wanted), value.shape[-1], dtype=torch.float32, device=device)
        return total.index_add_(0, rows, value[rows, places].float() * share[:, None]).to(value.dtype)

    return average


@torch.no_grad()
def _forward(
    model: Model, batch: Batch, sites: Sequence[Site], wanted: Sequence[Tensor], mean: bool
) -> Float[Tensor, "site row d_model"]:
    found: dict[Site, Tensor] = {}
    pick = _reader(wanted, batch.input_ids.shape[1], mean, model.device)

    def read(site: Site, value: Tensor) -> None:
        found[site] = pick(value.detach())

    with reading(model, sites, read), stopping_after(model, sites):  # hooks run in this order
        model.module(**batch.inputs(), use_cache=False)
    if model.device.type == "cpu":
        return torch.stack([found[site] for site in sites])
    return torch.stack([found[site].to("cpu") for site in sites])


def _raise_non_finite(
    found: Float[Tensor, "site row d_model"], sites: Sequence[Site], ids: Sequence[str], counts: Sequence[int]
) -> None:
    bad = (~torch.isfinite(found)).any(-1)
    site = next(site for site, row in zip(sites, bad, strict=True) if row.any())
    owners = [name for name, count in zip(ids, counts, strict=True) for _ in range(count)]
    name = owners[int(bad[sites.index(site)].nonzero()[0])]
    raise NonFiniteError(
        f"activations at {site} are NaN or infinite for prompt {name!r}; check the checkpoint, or load it in bfloat16 or float32"
    )


class _Shards:
    """One safetensors file a batch, written aside and renamed; the index comes last and makes the capture whole."""

    def __init__(
        self,
        out: Path,
        sites: Sequence[Site],
        ids: tuple[str, ...],
        offsets: Tensor,
        positions: str,
        model: Model,
        tokens: Sequence[Tokens],
    ) -> None:
        self.out, self.offsets = out, offsets
        weights = model.checkpoint.fingerprint() if model.checkpoint else _weights_hash(model)
        self.plan: dict[str, Any] = {
            "sites": [str(site) for site in sites],
            "prompt_ids": list(ids),
            "offsets": offsets.tolist(),
            "positions": positions,
            "model": model.name,
            "weights": weights,
            "dtype": str(model.dtype).removeprefix("torch."),
            "tokens": _tokens_hash(tokens),
        }
        # Shards of another plan are left alone: their names carry the hash of theirs.
        self.key = hashlib.sha256(json.dumps(self.plan, sort_keys=True).encode()).hexdigest()[:12]
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResultError(f"cannot write activations to {out}: {error.strerror}") from error
        self.done: set[int] = set()
        for path in self._paths():
            self.done |= set(_shard_prompts(path))

    def _paths(self) -> list[Path]:
        return sorted(self.out.glob(f"shard-{self.key}-*.safetensors"))

    def write(self, batch: list[int], found: Tensor) -> None:
        path = self.out / f"shard-{self.key}-{batch[0]:07d}.safetensors"
        data = save({"values": found.contiguous(), "prompts": torch.tensor(batch)})
        with atomic_write(path) as aside:
            aside.write_bytes(data)

    def finish(self) -> StoredActivations:
        shards = [{"file": path.name, "prompts": _shard_prompts(path)} for path in self._paths()]
        save_json(self.out / INDEX, {**self.plan, "shards": shards})
        return StoredActivations(self.out)


def _tokens_hash(tokens: Sequence[Tokens]) -> str:
    digest = hashlib.sha256(json.dumps([list(row) for row in tokens]).encode())
    for row in tokens:
        for name, value in row.media.items():
            digest.update(name.encode() + value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _weights_hash(model: Model) -> str:
    """Of a model that is in memory only, such as one just trained."""
    digest = hashlib.sha256()
    for name, tensor in model.module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _rows_of(offsets: Int[Tensor, " prompt_plus_one"], prompts: Sequence[int]) -> Int[Tensor, " row"]:
    return torch.cat([torch.arange(int(offsets[i]), int(offsets[i + 1])) for i in prompts])


def _shard_prompts(path: Path) -> list[int]:
    with safe_open(path, framework="pt") as file:
        return file.get_tensor("prompts").tolist()


class StoredActivations:
    """A finished capture on disk, read site by site without loading the rest.

    Raises ResultError when the directory holds no finished capture.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        try:
            self.index = json.loads((self.directory / INDEX).read_text())
        except (OSError, ValueError) as error:
            raise ResultError(
                f"{directory} holds no finished capture ({error}); run it again to resume"
            ) from error
        self.sites = tuple(Site.parse(text) for text in self.index["sites"])
        self.prompt_ids = tuple(self.index["prompt_ids"])
        self.offsets = torch.tensor(self.index["offsets"])

    @property
    def nbytes(self) -> int:
        """Bytes of all shards on disk."""
        return sum(os.path.getsize(self.directory / shard["file"]) for shard in self.index["shards"])

    def _slices(self) -> Iterator[tuple[Any, Tensor]]:
        for shard in self.index["shards"]:
            place = _rows_of(self.offsets, shard["prompts"])
            with safe_open(self.directory / shard["file"], framework="pt") as file:
                yield file.get_slice("values"), place

    def load(self, sites: Sequence[str | Site] | None = None) -> Activations:
        """All sites, or only some, as `Activations`."""
        chosen = self.sites if sites is None else tuple(Site.parse(site) for site in sites)
        missing = [site for site in chosen if site not in self.sites]
        if missing:
            raise SiteError(f"{missing[0]} was not captured; there are {', '.join(map(str, self.sites))}")
        values: Tensor | None = None
        for data, place in self._slices():
            for k, site in enumerate(chosen):
                i = self.sites.index(site)
                rows = data[i : i + 1][0]
                if values is None:
                    values = torch.empty(len(chosen), int(self.offsets[-1]), rows.shape[-1], dtype=rows.dtype)
                values[k, place] = rows
        assert values is not None
        return Activations(
            values, self.offsets, chosen, self.prompt_ids, self.index["positions"], self.index["model"]
        )
