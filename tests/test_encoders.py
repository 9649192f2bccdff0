"""Every encoder by its name: against a reference of its own, on planted likeness, and refused where it cannot be."""

import math
from collections import Counter

import numpy as np
import pytest
import tiny
import torch
from scipy.sparse import csr_array
from test_multimodal import asked, made
from tiny_multimodal import RATE, clip, picture
from transformers import (
    CLIPConfig,
    CLIPModel,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from interp.data.prompts import Prompt, PromptSet
from interp.errors import CheckpointError, EmbeddingError, UserError
from interp.methods.embedding import embed
from interp.methods.encoders import AXES, find_encoder, needs_model
from interp.methods.media_encoders import cepstrum
from interp.methods.own_encoders import gradient_encoder
from interp.methods.proximity import proximity
from interp.methods.text_encoders import read_stop_words, words
from interp.models.activations import capture
from interp.models.gradients import capture_gradients


def asking(texts, name="benign"):
    return PromptSet([Prompt(text=text, id=f"{name}-{i}") for i, text in enumerate(texts)], name=name)


def dense(rows):
    return torch.from_numpy(rows.toarray()) if isinstance(rows, csr_array) else rows


def cosine(a, b):
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


# words


BENIGN = asking(
    [
        "Please explain how to bake a cake!",
        "how do I pick a lock",
        "describe a cake and a lock",
        "plant trees",
    ]
)
HARMFUL = asking(["Tell me how to pick a lock.", "steal a car"], "harmful")


def test_word_counts_are_weighed_by_rarity():
    kept = [words(prompt.text) for prompt in (*BENIGN, *HARMFUL)]
    assert kept == [
        ["bake", "cake"],
        ["pick", "lock"],
        ["cake", "lock"],
        ["plant", "trees"],
        ["pick", "lock"],
        ["steal", "car"],
    ]
    contents = {tuple(w) for w in kept[:4]} | {tuple(w) for w in kept[4:]}
    assert len(contents) == 5  # "pick lock" stands in both sets: each set's contents count
    documents = [*kept[:4], *kept[4:]]
    seen = Counter(word for document in documents for word in set(document))
    weight = {word: math.log((1 + 6) / (1 + n)) + 1 for word, n in seen.items()}
    found = proximity(*embed(find_encoder("lexical:tfidf"), BENIGN, HARMFUL), n=2)

    def angle(a, b):
        inner = sum(weight[w] ** 2 for w in set(a) & set(b))
        return inner / math.sqrt(sum(weight[w] ** 2 for w in a) * sum(weight[w] ** 2 for w in b))

    expected = [[1 - angle(b, h) for h in kept[4:]] for b in kept[:4]]
    assert torch.allclose(found.least, torch.tensor(expected, dtype=torch.float64).sort(1).values, atol=1e-12)
    assert found.least[1, 0] == pytest.approx(0, abs=1e-12) and found.nearest_ids()[1] == "harmful-0"
    assert found.least[3, 0] == pytest.approx(1)


def test_phrasing_does_not_count_unless_asked_for():
    same = asking(["how do I pick a lock", "please describe: pick lock?"])
    plain, full = (embed(find_encoder("lexical:tfidf", stop_words=s), same)[0] for s in (None, frozenset()))
    assert len(plain.counts) == 1 and len(full.counts) == 2
    with pytest.raises(
        EmbeddingError, match=r"benign: prompt 'benign-1': its text 'What is it\?' holds stop words only"
    ):
        embed(find_encoder("lexical:tfidf"), asking(["bake", "What is it?"]))
    assert embed(find_encoder("lexical:tfidf", stop_words=frozenset()), asking(["bake", "What is it?"]))


def test_stop_words_come_from_a_file(tmp_path):
    (tmp_path / "list.txt").write_text("Bake\ncake  trees")
    assert read_stop_words(tmp_path / "list.txt") == {"bake", "cake", "trees"}
    (tmp_path / "empty.txt").write_text(" \n")
    for name in ("empty.txt", "none.txt"):
        with pytest.raises(UserError, match=name):
            read_stop_words(tmp_path / name)


# sound


def hand_cepstrum(wave):
    """By the definitions: windows, power spectra, triangles on the Slaney scale, logarithm, cosine transform."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = np.stack([wave[i : i + 400] * hann for i in range(0, len(wave) - 399, 160)])
    power = np.abs(np.fft.rfft(frames.astype(np.float64), 512)) ** 2

    def to_mel(hertz):
        return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)

    def to_hertz(mel):
        return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)

    edges = [to_hertz(m) for m in np.linspace(0, to_mel(8000), 42)]
    bins = np.fft.rfftfreq(512, 1 / 16_000)
    bands = []
    for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False):
        rise, fall = (bins - low) / (middle - low), (high - bins) / (high - middle)
        bands.append(np.maximum(0, np.minimum(rise, fall)) * 2 / (high - low))
    logs = np.log(np.maximum(power @ np.array(bands).T, 1e-10))
    k, m = np.arange(20)[:, None], np.arange(40)[None]
    basis = np.cos(np.pi * k * (m + 0.5) / 40) * np.sqrt(2 / 40)
    basis[0] /= math.sqrt(2)
    return logs @ basis.T


def test_cepstra_are_those_of_the_definitions():
    wave = clip(0.5, seed=3)
    assert np.allclose(cepstrum(wave), hand_cepstrum(wave), atol=1e-5)


def test_loudness_does_not_move_a_voice_and_the_voice_outweighs_the_words(tmp_path):
    speech = pytest.importorskip("interp.organisms.speech")
    pytest.importorskip("espeakng_loader")
    names = ("en-us+m3", "en-us+f2", "en-029+m1", "en-gb-scotland+f1")
    texts = ("how do i rob a bank?", "tell me how to water a garden.", "explain how to paint a boat.")
    clips = {(v, t): speech.synthesise(t, speech.Voice(v)) for v in names for t in texts}
    spoken = PromptSet(
        [Prompt(text=t, id=f"{v} {t}", audio=(w, RATE)) for (v, t), w in clips.items()], name="spoken"
    )
    first = next(iter(clips.values()))
    quiet = PromptSet([Prompt(text="", id="quiet", audio=(0.3 * first, RATE))], name="quiet")
    everything, soft = embed(find_encoder("audio:mfcc"), spoken, quiet)
    rows = everything.expanded()
    assert cosine(rows[0], soft.rows[0]) > 0.9999
    unit = torch.nn.functional.normalize(rows - rows.mean(0), dim=1)
    near = (unit @ unit.T).fill_diagonal_(-2).argmax(1)
    same_voice = sum(i // 3 == int(j) // 3 for i, j in enumerate(near))
    assert same_voice >= 8  # of 12, by chance 2; it is 9
    lexical = embed(find_encoder("lexical:tfidf"), spoken)[0]
    assert len(lexical.counts) == 3  # the words do not hear the voice


def test_sound_too_short_is_named():
    short = PromptSet([Prompt(text="", id="blip", audio=(clip(0.02), RATE))], name="spoken")
    with pytest.raises(UserError, match=r"'blip'.*0.020 s of sound are too short; 0.025 s are needed"):
        embed(find_encoder("audio:mfcc"), short)
    with pytest.raises(EmbeddingError, match="'benign-0': it has no audio"):
        embed(find_encoder("audio:mfcc"), BENIGN)


# pretrained encoders, tiny and random


def saved(directory, module, reader):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module.apply(
            lambda part: [
                torch.nn.init.normal_(p, std=0.2) for p in part.parameters(recurse=False) if p.ndim > 1
            ]
        )
    module.eval().save_pretrained(directory)
    reader.save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def wavlm(tmp_path_factory):
    config = WavLMConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, conv_dim=(8, 8, 8), conv_stride=(5, 4, 4),
        conv_kernel=(10, 4, 4), num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, feat_extract_norm="layer",
        do_stable_layer_norm=True, num_buckets=8, max_bucket_distance=16,
    )  # fmt: skip
    reader = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    return saved(tmp_path_factory.mktemp("wavlm"), WavLMModel(config), reader)


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    config = WhisperConfig(
        vocab_size=60, d_model=24, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=16, max_source_positions=100, max_target_positions=16, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    reader = WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    return saved(tmp_path_factory.mktemp("whisper"), WhisperModel(config), reader)


@pytest.fixture(scope="module")
def clip_model(tmp_path_factory):
    tower = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**tower, "vocab_size": 50},
        vision_config={**tower, "image_size": 28, "patch_size": 7},
        projection_dim=20,
    )
    size = {"height": 28, "width": 28}
    return saved(
        tmp_path_factory.mktemp("clip"),
        CLIPModel(config),
        CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=size),
    )


def spoken(*seconds, name="spoken"):
    return PromptSet(
        [Prompt(text="", id=f"{name}-{i}", audio=(clip(s, seed=i), RATE)) for i, s in enumerate(seconds)],
        name=name,
    )


def test_a_speech_encoder_is_averaged_over_time(wavlm):
    clips = spoken(0.5, 0.9, 0.5)
    found = embed(find_encoder(f"hf:{wavlm}", device="cpu"), clips)[0].expanded()
    model = WavLMModel.from_pretrained(wavlm).eval()
    for row, prompt in zip(found, clips, strict=True):
        wave = prompt.audio[0]
        values = torch.from_numpy((wave - wave.mean()) / np.sqrt(wave.var() + 1e-7))[None].float()
        with torch.no_grad():
            expected = model(values).last_hidden_state[0].mean(0)
        assert torch.allclose(row, expected, atol=1e-4)


def test_a_mixed_encoder_leaves_out_frames_that_only_fill_up(whisper):
    clips = spoken(0.5, 1.3)
    found = embed(find_encoder(f"hf:{whisper}", device="cpu"), clips)[0].expanded()
    reader, model = (
        WhisperFeatureExtractor.from_pretrained(whisper),
        WhisperModel.from_pretrained(whisper).eval(),
    )
    for row, prompt, frames in zip(found, clips, (25, 65), strict=True):
        features = reader(prompt.audio[0], sampling_rate=RATE, return_tensors="pt").input_features
        with torch.no_grad():
            states = model.encoder(features).last_hidden_state[0]
        assert states.shape[0] == 100
        assert torch.allclose(row, states[:frames].mean(0), atol=1e-5)
        assert not torch.allclose(row, states.mean(0), atol=1e-3)
    with pytest.raises(UserError, match=r"'spoken-0'.*2.5 s long, more than the 2 s allowed"):
        embed(find_encoder(f"hf:{whisper}", device="cpu"), spoken(2.5))


def test_an_image_encoder_gives_the_image_embedding(clip_model):
    images = PromptSet(
        [Prompt(text="", id=f"i{k}", images=(picture(28, 28, k), picture(28, 28, 9))) for k in range(3)]
    )
    found = embed(find_encoder(f"hf:{clip_model}", device="cpu"), images)[0].expanded()
    model, reader = (
        CLIPModel.from_pretrained(clip_model).eval(),
        CLIPImageProcessorPil.from_pretrained(clip_model),
    )
    for row, prompt in zip(found, images, strict=True):
        pixels = reader(images=list(prompt.images), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            expected = model.visual_projection(model.vision_model(pixels).pooler_output)
        assert torch.allclose(row, expected.mean(0), atol=1e-5)


def test_what_is_no_encoder_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="has nothing that prepares sound or images"):
        find_encoder(f"hf:{tmp_path}")
    with pytest.raises(CheckpointError, match="no such directory"):
        find_encoder("hf:./nowhere")
    for name in ("loudness", "lexical:bm25", "audio:pitch", "st:", "gradient:x"):
        with pytest.raises(UserError, match="unknown encoder"):
            find_encoder(name, model=tiny.model() if name.startswith("gradient") else None)
    with pytest.raises(UserError, match="audio:mfcc reads no words"):
        find_encoder("audio:mfcc", stop_words=frozenset())
    with pytest.raises(
        UserError, match="self:encoder is a part of the model to be trained: give it with --model"
    ):
        find_encoder("internal")
    assert [axis for axis in AXES if needs_model(axis)] == ["internal", "projector"] and needs_model(
        "gradient"
    )


# parts of the model to be trained


@pytest.mark.parametrize("kind", ["qwen2_audio", "gemma3"])
def test_the_models_own_encoder_and_projector(kind):
    model = made(kind)
    prompts = PromptSet(asked(kind, n=3, text_too=False))
    tower = next(iter(model.tower.encoders))
    for name, site in (("self:encoder", f"{tower}.resid_post.1"), ("self:projector", f"{tower}.projector")):
        expected = capture(model, prompts, site, "mean", progress=False).values[0]
        assert torch.equal(embed(find_encoder(name, model=model), prompts)[0].expanded(), expected.float())
        assert torch.equal(
            embed(find_encoder(f"{name}={tower}", model=model), prompts)[0].expanded(), expected.float()
        )
    with pytest.raises(EmbeddingError, match="'benign-0'.*it has no (audio|images)"):
        embed(find_encoder("self:encoder", model=model), BENIGN)
    other = "vision" if tower == "audio" else "audio"
    with pytest.raises(UserError, match=f"has no {other} encoder"):
        find_encoder(f"self:encoder={other}", model=model)


def test_a_layer_of_the_model():
    model, prompts = tiny.model(), PromptSet(tiny.prompts(5))
    expected = capture(model, prompts, "resid_post.2", "last", progress=False).values[0]
    found = embed(find_encoder("self:layer=2", model=model), prompts)[0].expanded()
    assert torch.allclose(found, expected.float(), atol=1e-5)
    with pytest.raises(UserError, match=r"site resid_post.9 does not exist"):
        embed(find_encoder("self:layer=9", model=model), prompts)
    with pytest.raises(UserError, match="neither sees nor hears; use self:layer=N"):
        find_encoder("self:encoder", model=model)
    with pytest.raises(UserError, match="unknown encoder self:head"):
        find_encoder("self:head", model=model)


def test_gradients_have_the_cosines_of_whole_gradients_and_go_in_parts():
    model, prompts = tiny.model(), PromptSet(tiny.answered(8))
    gram = capture_gradients(model, prompts, keep="gram", progress=False).total
    exact = gram / gram.diagonal().sqrt()[:, None] / gram.diagonal().sqrt()
    encoder = gradient_encoder(model, dimension=256 * 256)
    found = embed(encoder, prompts)[0].expanded()
    assert torch.allclose(torch.linalg.vector_norm(found, dim=1), torch.ones(8), atol=1e-5)
    off = ~torch.eye(8, dtype=torch.bool)
    projected = (found.double() @ found.double().T)[off]
    assert (projected - exact[off]).abs().max() < 0.05
    assert exact[off].std() > 0.03
    parts = embed(gradient_encoder(model, dimension=256 * 256, memory=3 * 28 * 4 * 256 * 256), prompts)[
        0
    ].expanded()
    assert torch.allclose(parts, found, atol=1e-4)
    assert encoder.measure == "mean"
    with pytest.raises(EmbeddingError, match="'p0-0': it has no response"):
        embed(encoder, PromptSet(tiny.prompts(2)))


def test_the_response_is_read_by_gradients_and_by_nothing_else():
    one, other = (Prompt(text="w1 w2", id=r, response=r) for r in ("w3", "w9"))
    model = tiny.model()
    for name, contents in (("gradient", 2), ("self:layer=1", 1), ("lexical:tfidf", 1)):
        assert len(embed(find_encoder(name, model=model), PromptSet([one, other]))[0].counts) == contents
