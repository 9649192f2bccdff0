"""Which settings does a sweep run? A YAML file with an experiment, fields that all cells share, and the values to combine.

    experiment: finetune          # a script of experiments/ or probes/ with a Config and a run
    base: {checkpoint: organism:text/aligned}
    grid: {lora_rank: [1, 4, 16], seed: [0, 1]}
    cells: [{lora_rank: 64, seed: 0}]
    slurm: {partition: gpu, gpus: 1, minutes: 240}

Every cell is checked by the experiment's own Config before the first one starts: all that is wrong is named at once.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from interp import scripts
from interp.errors import UserError
from interp.files import canonical

PACKAGES = ("experiments", "probes")


class Slurm(BaseModel):
    """What a job asks of Slurm; `extra` goes to sbatch as it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    partition: str | None = None
    gpus: int = Field(0, ge=0)
    cpus: int = Field(2, ge=1)
    memory_gb: int | None = Field(None, ge=1)
    minutes: int = Field(240, ge=1)
    setup: tuple[str, ...] = ()
    extra: dict[str, str | int | bool] = Field(default_factory=dict)


class SweepFile(BaseModel):
    """The fields of a sweep's YAML file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    experiment: str
    base: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, list[Any]] = Field(default_factory=dict)
    cells: list[dict[str, Any]] = Field(default_factory=list)
    slurm: Slurm = Slurm()


@dataclass(frozen=True, eq=False)
class Cell:
    """One setting of an experiment.

    script: dotted name of its module. fields: JSON values of its Config. label: the fields that vary, for people.
    """

    script: str
    fields: Mapping[str, Any]
    label: str

    def module(self) -> ModuleType:
        """The experiment's module."""
        return importlib.import_module(self.script)

    def config(self) -> BaseModel:
        """The checked Config."""
        return self.module().Config.model_validate(self.fields)


@dataclass(frozen=True)
class Sweep:
    """Cells in order, each once; `duplicates` says which of the file's cells were equal to an earlier one."""

    name: str
    cells: tuple[Cell, ...]
    duplicates: tuple[str, ...]
    slurm: Slurm


def read_sweep(path: Path | str) -> Sweep:
    """Read and check a sweep; raises UserError of one line naming the file and every cell that is wrong."""
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path}: holds no fields; give experiment and grid")
    try:
        file = SweepFile.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{path}: {_first(error)}") from error
    return expand(file, path.stem, str(path))


def expand(file: SweepFile, name: str, where: str) -> Sweep:
    """Every combination of the grid, then the single cells; raises UserError naming all that are wrong."""
    script = _script(file.experiment)
    config = getattr(importlib.import_module(script), "Config", None)
    if not (isinstance(config, type) and issubclass(config, BaseModel)):
        raise UserError(f"{where}: {file.experiment} has no Config to sweep")
    if empty := [key for key, values in file.grid.items() if not values]:
        raise UserError(f"{where}: grid: {empty[0]!r} has no values")
    combined = [
        dict(zip(file.grid, values, strict=True)) for values in itertools.product(*file.grid.values())
    ]
    varied = [*(combined if file.grid else []), *file.cells]
    if not varied:
        raise UserError(f"{where}: has no cells; give grid or cells")
    wrong, duplicates, cells = [], [], []
    seen: dict[str, int] = {}
    for number, fields in enumerate(varied, start=1):
        label = ", ".join(f"{key}={value}" for key, value in fields.items()) or "defaults"
        try:
            checked = config.model_validate({**file.base, **fields})
        except ValidationError as error:
            wrong.append(f"cell {number} ({label}): {_first(error)}")
            continue
        values = checked.model_dump(mode="json")
        key = canonical(values)
        if key in seen:
            duplicates.append(f"cell {number} ({label}) is cell {seen[key]}")
            continue
        seen[key] = number
        cells.append(Cell(script, values, label))
    if wrong:
        raise UserError(f"{where}: {len(wrong)} of {len(varied)} cells are wrong: {'; '.join(wrong)}")
    return Sweep(name, tuple(cells), tuple(duplicates), file.slurm)


def _script(name: str) -> str:
    for package in PACKAGES:
        if name.replace("-", "_") in scripts.available(package):
            return f"{package}.{name.replace('-', '_')}"
    return f"{PACKAGES[0]}.{scripts.find(PACKAGES[0], name)}"


def _first(error: ValidationError) -> str:
    found = error.errors()[0]
    return f"{'.'.join(map(str, found['loc'])) or 'fields'}: {found['msg']}"
