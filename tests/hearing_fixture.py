"""Audio organisms of random weights under the names of trained ones: the real architecture, tokens, voices and files, a few numbers wide."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from interp.models.checkpoint import organism_dir
from interp.organisms import audio_mlp, audio_model, recogniser


@contextmanager
def untrained(cache: Path, organisms: tuple[int, ...], bridges: tuple[int, ...] = ()) -> Iterator[None]:
    """`organism:audio/aligned@k`, its encoder, and of `bridges` `organism:audio-mlp/aligned@k`, while the context lasts."""
    tiny = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTERP_CACHE", str(cache))
        patch.setattr(recogniser, "ARCHITECTURE", {**recogniser.ARCHITECTURE, **tiny})
        patch.setattr(audio_model, "ARCHITECTURE", {**audio_model.ARCHITECTURE, **shape})
        for seed in organisms:
            hearing = recogniser.Recogniser(seed, shape["hidden_size"])
            hearing.encoder.save_pretrained(organism_dir("audio-encoder", seed))
            recogniser.feature_extractor().save_pretrained(organism_dir("audio-encoder", seed))
            model = audio_model.new_model(seed, hearing)
            model.save_pretrained(organism_dir("audio", seed) / "aligned")
            audio_model.processor().save_pretrained(organism_dir("audio", seed) / "aligned")
            if seed in bridges:
                directory = organism_dir("audio-mlp", seed) / "aligned"
                audio_mlp.bridged(model, seed).save_pretrained(directory)
                audio_mlp.processor().save_pretrained(directory)
        yield
