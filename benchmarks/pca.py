"""What does streaming PCA cost beside one pass over the data, and in how much memory?

A file of random rows with a decaying spectrum and one massive channel, written once, larger than what any engine may hold.

1. `pass`: read every chunk and add it up: the pass itself.
2. `floor`: read every chunk, make it fp64 and multiply it with itself once; what an exact PCA cannot do without.
3. `pca`: `interp.geometry.pca`: moments of the stream, both views, leading components.
4. `sklearn`: scikit-learn's IncrementalPCA over the same chunks, as the peer; it keeps an approximation of what it has seen.

`--config '{"n": 1000000, "d_model": 2560}'` is the full size (10 GB of disk); the default is what a small machine does in a minute.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from benchmarks.harness import (
    Run,
    interleave,
    machine,
    mebibytes,
    paired_ratio,
    seconds,
    seconds_note,
    target,
    verdicts,
)
from interp.files import load_arrays, save_arrays
from interp.geometry.pca import CHUNK_ROWS, moments_of, row_chunks

TARGET, BOUND = 1.25, 8
LABELS = {
    "pass": "one pass: read and add up",
    "floor": "floor: read, one fp64 product a chunk",
    "pca": "`interp.geometry.pca`, both views",
    "sklearn": "`IncrementalPCA` of scikit-learn",
}
MASSIVE = 443


class Config(BaseModel):
    """Rows, their width, and how many components are compared."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int = 100_000
    d_model: int = 1024
    rank: int = 20
    peer: bool = True
    seed: int = 0
    file: Path | None = None

    @property
    def place(self) -> Path:
        """The file of rows: the one given, or one named by what it holds."""
        name = f"interp-pca-{self.n}-{self.d_model}-{self.seed}.npy"
        return self.file or Path(tempfile.gettempdir()) / name


def write_rows(config: Config) -> Path:
    """Write the rows chunk by chunk unless they are there."""
    path = config.place
    shape = (config.n, config.d_model)
    if path.exists() and np.load(path, mmap_mode="r").shape == shape:
        return path
    rng = np.random.default_rng(config.seed)
    scale = np.linspace(0, -3, config.d_model, dtype=np.float32)
    mixing = rng.standard_normal((config.d_model, 64), dtype=np.float32)
    aside = path.with_suffix(".writing.npy")
    rows = np.lib.format.open_memmap(aside, mode="w+", dtype=np.float32, shape=shape)
    for start in range(0, config.n, CHUNK_ROWS):
        n = min(CHUNK_ROWS, config.n - start)
        part = rng.standard_normal((n, config.d_model), dtype=np.float32) * np.exp(scale)
        part += rng.standard_normal((n, 64), dtype=np.float32) @ mixing.T
        part[:, MASSIVE % config.d_model] = 1e3 * (5 + rng.standard_normal(n, dtype=np.float32))
        rows[start : start + n] = part
    rows.flush()
    del rows
    aside.replace(path)
    return path


def _pass(config: Config) -> Run:
    def run(out: Path) -> dict[str, Any]:
        total = torch.zeros(config.d_model, dtype=torch.float64)
        for chunk in row_chunks(config.place):
            total += chunk.sum(0)
        return {"total": float(total.sum())}

    return run


def _floor(config: Config) -> Run:
    def run(out: Path) -> dict[str, Any]:
        products = torch.zeros(config.d_model, config.d_model, dtype=torch.float64)
        for chunk in row_chunks(config.place):
            wide = chunk.double()
            products.addmm_(wide.T, wide)
        return {"trace": float(products.trace())}

    return run


def _pca(config: Config) -> Run:
    def run(out: Path) -> dict[str, Any]:
        moments = moments_of(row_chunks(config.place))
        raw, scored = moments.subspace(config.rank), moments.zscored().subspace(config.rank)
        save_arrays(
            out / "pca.safetensors", {"basis": raw.basis, "values": raw.singular_values[: config.rank]}
        )
        return {"raw": raw.participation_ratio, "z-scored": scored.participation_ratio}

    return run


def _sklearn(config: Config) -> Run:
    def run(out: Path) -> dict[str, Any]:
        from sklearn.decomposition import IncrementalPCA

        peer = IncrementalPCA(n_components=config.rank)
        for chunk in row_chunks(config.place):
            if len(chunk) >= config.rank:
                peer.partial_fit(chunk.numpy())
        save_arrays(out / "pca.safetensors", {"values": np.asarray(peer.singular_values_)})
        return {}

    return run


ENGINES = {"pass": _pass, "floor": _floor, "pca": _pca, "sklearn": _sklearn}


def check(config: Config, places: dict[str, Path]) -> dict[str, Any]:
    """How far the streamed components are from a full decomposition of as many rows as fit."""
    from sklearn.decomposition import PCA

    few = np.array(np.load(config.place, mmap_mode="r")[: min(config.n, 20_000)], dtype=np.float64)
    ours = moments_of([torch.from_numpy(few)]).subspace(config.rank)
    reference = PCA(n_components=config.rank, svd_solver="full").fit(few)
    gap = np.abs(ours.singular_values[: config.rank].numpy() / reference.singular_values_ - 1).max()
    found = {"rows": len(few), "relative_error": float(gap)}
    if "sklearn" in places:
        streamed = load_arrays(places["pca"] / "pca.safetensors")["values"].numpy()
        peer = load_arrays(places["sklearn"] / "pca.safetensors")["values"]
        found["peer_relative_error"] = float(np.abs(peer / streamed - 1).max())
    return found


def run(config: Config, *, threads: int, repeats: int) -> dict[str, Any]:
    """Time the engines in turn, and measure their memory."""
    path = write_rows(config)
    engines = [name for name in ENGINES if config.peer or name != "sklearn"]
    found = interleave(
        "benchmarks.pca", engines, config, threads=threads, repeats=repeats, memory=True,
        check=lambda places: check(config, places),
    )  # fmt: skip
    ratio = paired_ratio(found["engines"], "pca", "floor")
    error, growth = found["agreement"]["relative_error"], found["engines"]["pca"]["peak_growth"]
    matrix = 8 * config.d_model**2 + 8 * CHUNK_ROWS * config.d_model
    bytes_of = path.stat().st_size
    if config.file is None:
        path.unlink()
    return found | {
        "config": config.model_dump(mode="json"),
        "machine": machine(),
        "bytes": bytes_of,
        "targets": [
            target("singular values equal scikit-learn's to 1e-6", f"{error:.1e}", error <= 1e-6),
            target(f"both views ≤ {TARGET} × one product a chunk", f"{ratio:.2f} ×", ratio <= TARGET),
            target(
                f"memory bounded: ≤ {BOUND} × (one fp64 matrix + one chunk), whatever n",
                f"{mebibytes(growth)} beside {mebibytes(bytes_of)} of rows",
                growth is None or growth <= BOUND * matrix,
            ),
        ],
    }


def tables(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    engines, config = result["engines"], result["config"]
    lines = [
        "| engine | seconds, median (min to max) | times the pass | peak memory growth |",
        "|---|---|---|---|",
    ]
    for name, found in engines.items():
        ratio = "" if name == "pass" else f"{paired_ratio(engines, name, 'pass'):.1f}"
        lines.append(f"| {LABELS[name]} | {seconds(found)} | {ratio} | {mebibytes(found['peak_growth'])} |")
    head = f"{config['n']:,} rows × {config['d_model']}, {mebibytes(result['bytes'])} in fp32."
    return "\n\n".join([head, "\n".join(lines), seconds_note(result), verdicts(result["targets"])])
