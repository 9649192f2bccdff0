"""What is computed once for all fine-tunes on a pool? What the frozen encoder makes of every clip, and the distances on every axis."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, Field

from interp.benign_audio import nearness
from interp.benign_audio.pool import Pool, PoolKind, pool
from interp.files import load_arrays, load_table, save_arrays, save_table
from interp.models.checkpoint import Checkpoint, organism_dir
from interp.organisms.audio_model import Heard, hear
from interp.store import open_run

Bridge = Literal["linear", "mlp"]
KINDS: dict[str, str] = {"linear": "audio", "mlp": "audio-mlp"}
STUDY = "audio-benign-pools"
HERE = Path(__file__).parents[1]
# what decides pools, distances and what was heard, beside the organism's weights
SOURCES = [
    HERE / name
    for name in (
        "benign_audio/pool.py", "benign_audio/nearness.py", "benign_audio/prepare.py", "geometry/nearest.py", "methods/proximity.py",
        "methods/axes.py", "methods/embedding.py", "methods/media_encoders.py", "methods/own_encoders.py", "methods/text_encoders.py",
        "organisms/language.py", "organisms/world.py", "organisms/speech.py", "organisms/audio_language.py", "organisms/text_tasks.py",
        "organisms/recogniser.py",
    )
]  # fmt: skip


class Preparation(BaseModel):
    """A pool and the organism that hears it.

    Args:
        organism: seed of the organism; `seed` is the pool's. bridge: what stands between its encoder and its decoder.
        mixed: seed of the organism whose speech recogniser is the mixed axis; None leaves that axis out.
        n, n_harmful: benign items and harmful reference.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    organism: int = Field(0, ge=0)
    bridge: Bridge = "linear"
    stage: str = "aligned"
    pool: PoolKind = "planted"
    seed: int = Field(0, ge=0)
    mixed: int | None = Field(None, ge=0)
    n: int = Field(800, ge=8)
    n_harmful: int = Field(200, ge=2)

    @property
    def checkpoint(self) -> str:
        """The organism's name."""
        return f"organism:{KINDS[self.bridge]}/{self.stage}@{self.organism}"


@dataclass(frozen=True, eq=False)
class Prepared:
    """A pool with its distances (`nearness.measure`), the plane of its embeddings, and what the encoder made of its clips."""

    pool: Pool
    items: pd.DataFrame
    plane: pd.DataFrame
    heard: Heard


def keep_preparation(chosen: Preparation, out: Path) -> Path:
    """Prepare unless it is there; returns the directory."""
    inputs: dict[str, Path | str] = {"organism": Checkpoint.parse(chosen.checkpoint).fingerprint()}
    if chosen.mixed is not None:
        inputs["mixed"] = Checkpoint.parse(_mixed(chosen)).fingerprint()
    with open_run(out, STUDY, describe(chosen), chosen, inputs, SOURCES) as run:
        if not run.finished:
            model = Checkpoint.parse(chosen.checkpoint).load(device_map="cpu")
            made = pool(chosen.pool, chosen.seed, n=chosen.n, n_harmful=chosen.n_harmful)
            items, plane = nearness.measure(made, model, None if chosen.mixed is None else _mixed(chosen))
            module: Any = model.module
            heard = hear(module.model.audio_tower, made.turns, progress=False)
            places = np.array([heard.places[turn.line] for turn in made.turns])
            save_table(run.file("items.parquet"), items)
            save_table(run.file("plane.parquet"), plane)
            save_arrays(
                run.file("heard.safetensors"),
                {"vectors": heard.vectors, "places": torch.from_numpy(places)},
            )
        return run.finish()


def load_preparation(chosen: Preparation, directory: Path) -> Prepared:
    """Read a finished preparation back."""
    made = pool(chosen.pool, chosen.seed, n=chosen.n, n_harmful=chosen.n_harmful)
    arrays = load_arrays(directory / "heard.safetensors")
    places = {
        turn.line: (int(start), int(end))
        for turn, (start, end) in zip(made.turns, arrays["places"].tolist(), strict=True)
    }
    return Prepared(
        made,
        load_table(directory / "items.parquet"),
        load_table(directory / "plane.parquet"),
        Heard(arrays["vectors"], places),
    )


@lru_cache(maxsize=2)
def prepared(chosen: Preparation, out: Path) -> Prepared:
    """Prepare or read back; kept while trials on the same pool follow each other."""
    return load_preparation(chosen, keep_preparation(chosen, out))


def describe(chosen: Preparation) -> str:
    """A readable name."""
    return f"{chosen.bridge} organism {chosen.organism} {chosen.pool} pool {chosen.seed}"


def _mixed(chosen: Preparation) -> str:
    assert chosen.mixed is not None
    return str(organism_dir("audio-encoder", chosen.mixed))
