"""Is the Hugging Face hub within reach? Asked once, briefly, before its client would retry for half a minute."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

TIMEOUT_SECONDS = 3.0


@contextmanager
def offline_unless_reachable() -> Iterator[None]:
    """Let only the local cache be asked, for as long as the context lasts, when the hub does not answer."""
    import huggingface_hub as hub

    # datasets keeps its own copy of the switch
    switches: list[Any] = [hub.constants]
    if "datasets" in sys.modules:
        switches.append(sys.modules["datasets"].config)
    before = [switch.HF_HUB_OFFLINE for switch in switches]
    if not any(before) and not _answers(hub.constants.ENDPOINT):
        for switch in switches:
            switch.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.HF_HUB_OFFLINE = value


@cache
def _answers(endpoint: str) -> bool:
    import httpx

    try:
        httpx.head(endpoint, timeout=TIMEOUT_SECONDS)
    except httpx.HTTPError:
        return False
    return True
