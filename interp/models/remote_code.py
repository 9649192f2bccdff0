"""May code that comes with a checkpoint run? Only where it must, was asked for by name, and cannot change under the reader.

A checkpoint's repository may hold Python files that describe an architecture which transformers does not have (Kimi-Audio does). Loading it
runs them with the rights of whoever loads. So, in this order:

1. An architecture that transformers has is loaded by transformers' own code, whatever the repository holds.
2. Any other is refused with the names of its files, unless `trust_remote_code` was given.
3. Even then a checkpoint on the hub must be pinned to a commit (a branch can be changed after it was read), and code that lies in
   another repository, which the pin does not cover, is refused.
4. What runs is said in a warning; its files are part of the checkpoint's fingerprint.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from interp.errors import CheckpointError

COMMIT = re.compile(r"[0-9a-f]{40}")


def read_config(name: str, revision: str | None, *, trust: bool) -> PreTrainedConfig:
    """A checkpoint's config; by its own code where that is needed and allowed.

    Raises CheckpointError where it is needed and not allowed, OSError or ValueError for an unreadable config.
    """
    described, _ = PreTrainedConfig.get_config_dict(name, revision=revision)
    run = _may_run(name, revision, described, trust)
    return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=run)


def brings_its_own_code(config: PreTrainedConfig) -> bool:
    """Whether a config read by `read_config` is of a class that came with the checkpoint."""
    return type(config).__module__.startswith("transformers_modules")


def _may_run(name: str, revision: str | None, described: dict[str, Any], trust: bool) -> bool:
    """Whether the checkpoint's code is to run: it must, and may; raises CheckpointError where it must and may not."""
    kind, classes = described.get("model_type"), described.get("auto_map") or {}
    if kind in CONFIG_MAPPING or "AutoConfig" not in classes:
        return False
    names = sorted({str(part) for found in classes.values() for part in _listed(found) if part})
    listed = ", ".join(names)
    local = Path(name).is_dir()
    if not trust:
        pin = "" if local else f" and pin the commit that you read: {name}@<its 40 hexadecimal digits>"
        raise CheckpointError(
            f"{name} is of type {kind!r}, which transformers {transformers.__version__} does not have, and brings its own code ({listed}). "
            f"Loading it runs that code with your rights. Read it first; then give --trust-remote-code (trust_remote_code=True){pin}"
        )
    if elsewhere := [part for part in names if "--" in part]:
        raise CheckpointError(
            f"{name} takes code from another repository ({elsewhere[0]}), which no revision of {name} pins; copy both into one "
            "directory, read the code, and load that"
        )
    if not local and not COMMIT.fullmatch(revision or ""):
        raise CheckpointError(
            f"--trust-remote-code needs a pinned revision: {name}@{revision or 'main'} can be changed after you have read its code; write "
            f"{name}@<the 40 hexadecimal digits of the commit>"
        )
    warnings.warn(
        f"running the code that comes with {name}{f'@{revision}' if revision else ''} ({listed}), because trust_remote_code was given",
        stacklevel=4,
    )
    return True


def _listed(value: Any) -> list[Any]:
    """Classes of an entry of `auto_map`: one, or several with None for a slow or fast tokenizer that there is not."""
    return list(value) if isinstance(value, list | tuple) else [value]
