"""Does the encoder hear, is what it hears its own clip's alone, and is its directory whole or absent?"""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Qwen2AudioConfig, Qwen2AudioEncoder, Qwen2AudioForConditionalGeneration

from interp.errors import NonFiniteError, UserError
from interp.organisms import audio_encoder, fitting, language, recogniser, speech, world
from interp.organisms.audio_encoder import lines
from interp.organisms.fitting import FitConfig
from interp.organisms.recogniser import Recogniser, features, said, words_heard
from interp.organisms.speech import RATE, Voice, synthesise

pytest.importorskip("espeakng_loader")
VOICE = Voice("en-us+m1")


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A build of seconds: the real code with a narrow encoder, few clips and few steps, and nothing expected of it."""
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    tiny = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
    monkeypatch.setattr(recogniser, "ARCHITECTURE", {**recogniser.ARCHITECTURE, **tiny})
    training = FitConfig(steps=6, batch_size=4, learning_rate=2e-3, warmup=2, muon=6e-3)
    monkeypatch.setattr(audio_encoder, "TRAINING", training)
    monkeypatch.setattr(audio_encoder, "CLIPS", 12)
    monkeypatch.setattr(fitting, "CURVE_EVERY", 1)
    monkeypatch.setattr(fitting, "SAVE_EVERY", 2)
    monkeypatch.setattr(audio_encoder, "N_TEST", 3)
    monkeypatch.setattr(audio_encoder, "EXPECTED", {})
    return tmp_path


def clips(*texts: str) -> list[np.ndarray]:
    return [synthesise(text, VOICE) for text in texts]


def test_every_request_is_written_in_the_vocabulary():
    known = set(recogniser.vocabulary()[1:])
    assert recogniser.vocabulary()[0] == recogniser.BLANK
    prompts = [*language.pretraining_examples(0), *language.benign_skill_examples()]
    spoken = [p.text for p in prompts if "grandmother" not in p.text]
    assert {word for text in spoken for word in said(text)} == known
    assert said("may i legally bake a cake?") == ["may", "i", "legally", "bake", "a", "cake"]


def test_lines_keep_the_held_out_pairs_and_voices_out():
    seen, again = (lines(4000, "seen", 0, held_out=False, word_lists=0.5) for _ in range(2))
    assert seen == again != lines(4000, "seen", 1, held_out=False, word_lists=0.5)
    held = {a.phrase for a in world.acts() if a.split in ("held-out pair", "held-out verb")}

    def asks(text: str) -> bool:
        return any(f" {phrase}{end}" in text for phrase in held for end in ".? ")

    assert not [text for text, _ in seen if asks(text)]
    for text, voice in lines(100, "held-out accent", 0, held_out=True):
        assert asks(text)
        assert voice.name.split("+")[0] in ("en-us-nyc", "en-gb-x-gbcwmd")
    heard = {word for text, _ in seen for word in said(text)}
    assert heard == set(recogniser.vocabulary()[1:])


def test_what_is_trained_on_is_not_measured_on():
    chosen = {"held_out": False, "word_lists": audio_encoder.WORD_LISTS}
    trained = set(lines(audio_encoder.CLIPS, "seen", 0, **chosen))
    asked = [text for text, _ in trained if text[-1] in ".?"]
    assert 0.4 < len(asked) / len(trained) < 0.6
    for name, said_by in audio_encoder.evaluation_lines().items():
        assert len(said_by) == audio_encoder.N_TEST
        assert all(text[-1] in ".?" for text, _ in said_by)
        assert len(trained & set(said_by)) <= 2, name  # the same request in the same voice, by chance


def test_the_longest_requests_fit_a_clip():
    slowest = Voice("en-gb-x-gbclan+m3", min(speech.SPEEDS))
    acts = sorted(world.acts(), key=lambda act: -len(act.phrase))[:20]
    longest = max(
        len(synthesise(t.format(act=a.phrase), slowest)) for t in recogniser.PHRASINGS for a in acts
    )
    assert 1.6 < longest / RATE <= recogniser.CLIP_SECONDS
    text, rng = (
        max((t.format(act=a.phrase) for t in recogniser.PHRASINGS for a in acts), key=len),
        random.Random(0),
    )
    slow = [
        v
        for g in ("seen", "held-out", "held-out accent")
        for v in speech.voices(g)
        if v.speed == min(speech.SPEEDS)
    ]
    assert max(len(synthesise(text, v)) for v in rng.sample(slow, 60)) / RATE <= recogniser.CLIP_SECONDS


def test_every_clip_has_room_for_its_words():
    said_by = lines(300, "seen", 1, held_out=False, word_lists=1.0)
    fast = [(text, replace(voice, speed=max(speech.SPEEDS))) for text, voice in said_by]
    for text, voice in fast:
        vectors = len(synthesise(text, voice)) / RATE * 25
        assert vectors >= 2 * len(said(text)), text


def test_batches_hold_every_clip_once_an_epoch_and_begin_with_the_short_ones():
    lengths = np.random.default_rng(0).random(100).tolist()
    made = audio_encoder.batches(lengths, 40, 5, 0)
    assert made == audio_encoder.batches(lengths, 60, 5, 0)[:40] != audio_encoder.batches(lengths, 40, 5, 1)
    for epoch in (made[:20], made[20:]):
        assert sorted(i for batch in epoch for i in batch) == list(range(100))
    assert [i for batch in made[:20] for i in batch] == sorted(range(100), key=lengths.__getitem__)
    means = [np.mean([lengths[i] for i in batch]) for batch in made[20:]]
    assert means != sorted(means)
    assert np.mean([np.ptp([lengths[i] for i in batch]) for batch in made[20:]]) < 0.3  # 0.67 at random


def test_spectrograms_vary_as_asked_and_by_the_seed_alone(monkeypatch):
    mel, _ = features(clips("how do i rob a bank?", "bake a cake."))
    made, same, other = (recogniser.varied(mel, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(made, same)
    assert not torch.equal(made, other)
    assert 0.01 < (made - mel).abs().mean() < 0.5 * (mel[:1] - mel[1:]).abs().mean()
    for name in ("STRETCH", "TILT", "BAND", "MOMENT"):
        monkeypatch.setattr(recogniser, name, 0)
    torch.testing.assert_close(recogniser.varied(mel, torch.Generator().manual_seed(0)), mel)


def test_the_encoder_runs_as_inside_qwen2_audio():
    model = Recogniser(0)
    mel, frames = features(clips("how do i rob a bank?", "bake a cake."))
    made, lengths = recogniser.encode(model.encoder, mel, frames)
    text = {"vocab_size": 8, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "model_type": "qwen2"}
    config = Qwen2AudioConfig(
        audio_config=model.encoder.config.to_dict(), text_config=text | heads, audio_token_index=5
    )
    whole = Qwen2AudioForConditionalGeneration(config).eval()
    whole.model.audio_tower = model.encoder
    entering = []
    whole.model.multi_modal_projector.register_forward_hook(lambda _, args, out: entering.append(args[0]))
    rows = [[5] * n + [1] * (int(lengths.max()) - n + 1) for n in lengths.tolist()]
    mask = (torch.arange(mel.shape[-1])[None, :] < frames[:, None]).long()
    ids = torch.tensor(rows)
    whole(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        input_features=mel,
        feature_attention_mask=mask,
    )
    for i, n in enumerate(lengths.tolist()):
        assert n == pytest.approx(frames[i].item() / 4, abs=1.5)
        torch.testing.assert_close(entering[0][i, :n], made[i, :n])


def test_one_clip_never_hears_another():
    model = Recogniser(0).eval()
    a, b, c = clips("how do i rob a bank?", "what did they use to grow an orchid?", "bake a cake.")
    with torch.no_grad():
        alone, n = model(*features([a]))
        beside, _ = model(*features([b, a]))
        other, _ = model(*features([c, a]))
        unlike, _ = model(*features([b]))
    torch.testing.assert_close(beside[1, : n[0]], alone[0, : n[0]])
    torch.testing.assert_close(other[1, : n[0]], alone[0, : n[0]])
    assert (unlike[0, : n[0]] - alone[0, : n[0]]).abs().max() > 0.01


def test_a_recogniser_learns_a_handful_of_clips(monkeypatch, tmp_path):
    """Planted truth: with the words in the sound they are learnt; with clips and words shuffled apart, only by heart."""
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    texts = ["rob a bank", "bake a cake", "grow an orchid", "launder a coin"]
    said_by = [(text, Voice(f"en-us+{v}")) for text in texts for v in ("m1", "m2", "f1")]
    model = Recogniser(0)
    before = torch.get_rng_state()
    training = FitConfig(steps=90, batch_size=12, learning_rate=2e-3, warmup=10, muon=6e-3)
    log = audio_encoder.train(model, said_by, training, 0, progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert log[0]["loss"] > 2
    assert log[-1]["loss"] < 0.2
    unheard = [synthesise(text, Voice("en-us+m3")) for text in texts]
    heard = model.recognise(unheard)
    right = sum(words_heard(said(t), h) for t, h in zip(texts, heard, strict=True))
    moved = sum(words_heard(said(t), h) for t, h in zip(texts, heard[1:] + heard[:1], strict=True))
    assert right >= 9
    assert moved <= 4


def test_words_heard_counts_edits():
    truth = ["how", "do", "i", "rob", "a", "bank"]
    assert words_heard(truth, truth) == 6
    assert words_heard(truth, ["how", "do", "i", "rob", "bank"]) == 5
    assert words_heard(truth, ["how", "do", "do", "i", "rob", "a", "bank"]) == 5
    assert words_heard(truth, ["how", "do", "i", "rob", "a", "tank"]) == 5
    assert words_heard(truth, []) == 0
    assert words_heard(truth, ["x"] * 20) == 0


def test_a_cut_off_training_ends_as_one_that_was_not(small):
    said_by = lines(12, "seen", 0, held_out=False)
    whole, cut, resumed = Recogniser(3), Recogniser(3), Recogniser(4)
    resumed.words.copy_(whole.words)  # the seed's, and not trained
    log = audio_encoder.train(whole, said_by, audio_encoder.TRAINING, 3, progress=False)
    work = small / "work.safetensors"
    seen = []

    def stop(*args):
        seen.append(args)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return Recogniser.loss(cut, *args)

    cut.loss = stop
    with pytest.raises(KeyboardInterrupt):
        audio_encoder.train(cut, said_by, audio_encoder.TRAINING, 3, work=work, progress=False)
    again = audio_encoder.train(resumed, said_by, audio_encoder.TRAINING, 3, work=work, progress=False)
    assert again == log
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_a_word_is_read_by_the_angle_to_its_embedding():
    model = Recogniser(0).eval()
    assert torch.equal(model.words, Recogniser(0).words) and not torch.equal(model.words, Recogniser(1).words)
    torch.testing.assert_close(model.words.norm(dim=1), torch.ones(len(model.words)))
    with torch.no_grad():
        hidden = torch.randn(5, recogniser.ARCHITECTURE["d_model"])
        angles = nn.functional.cosine_similarity(model.projector(hidden)[:, None], model.words[None], dim=-1)
        expected = (recogniser.SHARPNESS[1] * angles).softmax(-1).log()
        torch.testing.assert_close(model.read(hidden), expected)
        model.projector.bias.zero_()
        torch.testing.assert_close(model.read(3 * hidden), model.read(hidden))


def test_reading_is_sharp_first_and_soft_at_the_end():
    found = [recogniser.sharpness(done) for done in (0.0, 0.45, 0.55, 0.65, 1.0)]
    assert found == pytest.approx([40.0, 40.0, 20.0, 10.0, 10.0])


def test_the_seed_decides_the_weights():
    before = torch.get_rng_state()
    one, same, other = (Recogniser(seed).encoder.conv1.weight for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_loss_that_is_not_finite_stops_the_training(small):
    said_by = lines(12, "seen", 0, held_out=False)
    model = Recogniser(0)
    model.projector.bias.data[0] = float("nan")
    with pytest.raises(NonFiniteError, match="step 0"):
        audio_encoder.train(model, said_by, audio_encoder.TRAINING, 0, progress=False)


@pytest.mark.parametrize(
    ("clip", "words"),
    [
        (np.zeros(0, np.float32), "lasts 0.00 s"),
        (np.zeros(3 * RATE, np.float32), "lasts 3.00 s"),
        (np.full(RATE, np.nan, np.float32), "not finite"),
    ],
)
def test_bad_clips_are_named(clip, words):
    good = np.ones(RATE, np.float32)
    with pytest.raises(UserError, match=f"clip 2 .*{words}"):
        features([good, clip])


def test_build_is_whole_reused_and_loaded_as_any_checkpoint(small):
    path = audio_encoder.build(1, progress=False)
    card = json.loads((path / "card.json").read_text())
    before = {p: p.stat().st_mtime_ns for p in path.iterdir()}
    assert audio_encoder.build(1, progress=False) == path
    assert {p: p.stat().st_mtime_ns for p in path.iterdir()} == before
    assert [p.name for p in path.parent.iterdir() if p.name.startswith((".partial", ".writing"))] == []
    assert set(card["measured"]) == {
        f"{what}, {name}"
        for what in ("words", "whole requests")
        for name in (
            "seen voices, seen requests",
            "seen voices, held-out requests",
            "held-out voices, held-out requests",
            "held-out accents, held-out requests",
        )
    }
    loaded = audio_encoder.load(path)
    assert not any(p.requires_grad for p in loaded.parameters())
    assert isinstance(loaded.encoder, Qwen2AudioEncoder)
    torch.testing.assert_close(
        loaded.encoder.embed_positions.weight, Recogniser(0).encoder.embed_positions.weight
    )
    measured = audio_encoder.measure(loaded, progress=False)
    assert measured == card["measured"]


def test_too_few_words_fail_the_build_by_name(small, monkeypatch):
    monkeypatch.setattr(audio_encoder, "EXPECTED", {"words, seen voices, held-out requests": 0.95})
    with pytest.raises(
        UserError, match=r"words, seen voices, held-out requests is 0\.\d+, expected at least 0.95"
    ):
        audio_encoder.build(0, progress=False)
    assert not (small / "organisms" / "audio-encoder" / "seed-0").exists()


def test_settings_name_the_kept_state(small, monkeypatch):
    one = audio_encoder._work(0)
    assert one == audio_encoder._work(0) != audio_encoder._work(1)
    monkeypatch.setattr(
        audio_encoder, "TRAINING", audio_encoder.TRAINING.model_copy(update={"learning_rate": 1.0})
    )
    assert one != audio_encoder._work(0)
