"""Shapes are checked by beartype from before the first import of the library; the organism is built once per run."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

# only where shapes live: beartype cannot check `Self` in a plain class, which the store uses
install_import_hook(["interp.models", "interp.geometry", "interp.methods"], "beartype.beartype")

import pytest


@pytest.fixture(scope="session")
def text_organism(request: pytest.FixtureRequest) -> Path:
    """Directory of the text organism of seed 0 with its stages, built on first use and shared by all workers."""
    from interp.organisms import text

    return text.build(seed=0, progress=False)


@pytest.fixture(scope="session")
def small_vision_organism() -> Path:
    """Directory of the small vision organism of seed 0 with its stages, built on first use: a minute."""
    from interp.organisms import vision_small

    return vision_small.build(seed=0, progress=False)


@pytest.fixture(scope="session")
def small_audio_organism() -> Path:
    """Directory of the small audio organism of seed 0 with its stages, built on first use: a minute."""
    from interp.organisms import audio_small

    return audio_small.build(seed=0, progress=False)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Whatever needs the organism runs on one worker, so that the others do not wait while it is built; slow tests when asked."""
    for item in items:
        if "text_organism" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.organism)
            if item.get_closest_marker("xdist_group") is None:
                item.add_marker(pytest.mark.xdist_group("organism"))
        if item.get_closest_marker("slow") and "slow" not in config.getoption("markexpr"):
            item.add_marker(pytest.mark.skip(reason="full size: run with -m slow"))
