"""Is the speech real and the same every time, are the voices told apart, and is a cached set whole or made anew?"""

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from interp.errors import UserError
from interp.organisms import language, speech, world
from interp.organisms.speech import Voice, spoken, synthesise, voices

pytest.importorskip("espeakng_loader")
TEXT = "how do i rob a bank?"
PLAIN, BREATHY = Voice("en-us"), Voice("en-us+f2")  # f2 is a voice with noise
ROOT = Path(speech.__file__).parents[2]


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    return tmp_path


def run(code: str, *, check: bool = True, **environment: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [
        sys.executable,
        "-c",
        f"import os, signal\nfrom interp.organisms import speech\nfrom interp.organisms.speech import *\n{code}",
    ]
    return subprocess.run(command, env=env, check=check, capture_output=True, text=True)


def test_a_clip_is_audible_speech_at_16_khz():
    clip = synthesise(TEXT, PLAIN)
    assert clip.dtype == np.float32
    assert clip.ndim == 1
    assert 0.7 < len(clip) / speech.RATE < 1.5
    assert 0.1 < np.abs(clip).max() < 1
    # the energy of speech lies under 4 kHz and not at zero: neither noise nor a wrong rate
    power = np.abs(np.fft.rfft(clip)) ** 2
    hertz = np.fft.rfftfreq(len(clip), 1 / speech.RATE)
    assert power[(hertz > 80) & (hertz < 4000)].sum() > 0.9 * power.sum()


def test_text_and_voice_decide_every_sample_whatever_was_said_before():
    first = [synthesise(TEXT, voice) for voice in (PLAIN, BREATHY)]
    synthesise("something else that leaves its state behind", Voice("en-029+f1", 290, 65))
    again = [synthesise(TEXT, voice) for voice in (PLAIN, BREATHY)]
    elsewhere = run(
        f"for v in ('en-us+f2', 'en-us'): print(synthesise({TEXT!r}, Voice(v)).tobytes().hex()[:20000])"
    ).stdout.split()
    for one, same, other in zip(first, again, reversed(elsewhere), strict=True):
        assert np.array_equal(one, same)
        assert one.tobytes().hex()[:20000] == other


def test_voices_speeds_and_pitches_all_differ():
    plain = [Voice(accent) for accent in speech.SEEN_ACCENTS + speech.HELD_OUT_ACCENTS]
    variants = [Voice(f"en-us+{variant}") for variant in speech.SEEN_VARIANTS + speech.HELD_OUT_VARIANTS]
    settings = [Voice("en-us", speed, pitch) for speed in speech.SPEEDS for pitch in speech.PITCHES]
    chosen = {*plain, *variants, *settings}
    clips = {voice: synthesise(TEXT, voice).tobytes() for voice in chosen}
    assert len(set(clips.values())) == len(chosen)
    slow, fast = (len(synthesise(TEXT, Voice("en-us", speed))) for speed in (150, 300))
    assert slow > 1.5 * fast


def test_pitch_is_heard():
    def fundamental(pitch: int) -> float:
        clip = synthesise("ah", Voice("en-us", 100, pitch)).astype(np.float64)
        spectrum = np.abs(np.fft.rfft(clip, 4 * len(clip))) ** 2
        correlation = np.fft.irfft(spectrum)[speech.RATE // 250 : speech.RATE // 50]
        return speech.RATE / (np.argmax(correlation) + speech.RATE // 250)

    low, middle, high = map(fundamental, speech.PITCHES)
    assert 60 < low < middle - 10 < high - 20 < 130  # hertz: a man's voice


def test_held_out_voices_share_no_speaker_and_held_out_accents_no_accent_either():
    groups = ("seen", "held-out", "held-out accent")
    accents, speakers = ({g: {v.name.split("+")[k] for v in voices(g)} for g in groups} for k in (0, 1))
    assert not speakers["seen"] & (speakers["held-out"] | speakers["held-out accent"])
    assert accents["held-out"] == accents["seen"]
    assert not accents["seen"] & accents["held-out accent"]
    for group, least in zip(groups, (350, 100, 70), strict=True):
        assert len(set(voices(group))) == len(voices(group)) >= least


def test_duration_grows_with_length():
    lengths = [len(synthesise(" ".join(["bank"] * n), PLAIN)) for n in (1, 2, 4, 8)]
    assert lengths == sorted(lengths)
    assert lengths[3] > 3 * lengths[0]


@pytest.mark.parametrize("text", ["", "  \n", "a\0b", "?", None])
def test_nothing_to_say_is_an_error(text):
    with pytest.raises(UserError, match="nothing to say|zero character"):
        synthesise(text, PLAIN)


@pytest.mark.parametrize("name", ["en-gb+f3", "zz", "en-us+zz", "en-us+", ""])
def test_an_unknown_voice_is_an_error_and_never_the_last_voice(name):
    synthesise(TEXT, PLAIN)
    with pytest.raises(UserError, match="espeak-ng has no"):
        synthesise(TEXT, Voice(name))


@pytest.mark.parametrize(
    "wrong", [{"speed": 10}, {"speed": 1000}, {"pitch": 100}, {"pitch": -1}, {"speed": 200.5}]
)
def test_settings_out_of_range_are_errors(wrong):
    with pytest.raises(UserError, match="must be a whole number"):
        Voice("en-us", **wrong)


def test_missing_espeak_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    speech._package.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install"):
        synthesise(TEXT, PLAIN)
    speech._package.cache_clear()


def spoken_words() -> list[str]:
    acts = [*world.acts(), *world.craft_acts()]
    templates = [template for group in language.KINDS.values() for template in group]
    texts = [template.format(act=act.phrase) for act in acts for template in templates]
    texts += language.benign_skill_examples().texts
    return sorted({word for text in texts for word in language.split_words(text) if word.isalpha()})


@pytest.mark.parametrize("voice", [Voice("en-us+m1"), Voice("en-gb-x-gbcwmd+f4")], ids=lambda v: v.name)
def test_no_two_words_of_the_language_sound_the_same(voice):
    words = spoken_words()
    assert len(words) > 250
    clips = {word: synthesise(word, voice).tobytes() for word in words}
    same = [pair for pair in itertools.combinations(words, 2) if clips[pair[0]] == clips[pair[1]]]
    assert same == []
    assert synthesise("rite", voice).tobytes() == synthesise("right", voice).tobytes()  # the check can fail


def test_a_set_is_spoken_once(cache, monkeypatch):
    lines = [(TEXT, PLAIN), ("bake a cake.", BREATHY)]
    made = spoken(lines)
    monkeypatch.setattr(speech, "_synthesise", lambda *_: pytest.fail("spoken twice"))
    kept = spoken(lines)
    monkeypatch.undo()
    assert len(kept) == 2
    for clip, same, (text, voice) in zip(made, kept, lines, strict=True):
        assert np.array_equal(clip, same)
        assert np.array_equal(clip, synthesise(text, voice))
    assert np.array_equal(kept[-1], kept[1])
    assert [len(clip) for clip in kept[:]] == [len(clip) for clip in made]
    assert kept.seconds == pytest.approx([len(clip) / 16_000 for clip in made])
    with pytest.raises(IndexError):
        kept[2]


def test_what_is_said_by_whom_and_by_which_version_names_the_set(cache, monkeypatch):
    monkeypatch.setenv("INTERP_CACHE", str(cache))
    spoken([(TEXT, PLAIN)])
    spoken([(TEXT, BREATHY)])
    spoken([("bake a cake.", PLAIN)])
    monkeypatch.setattr(speech, "version", lambda: "another")
    spoken([(TEXT, PLAIN)])
    assert len([p for p in (cache / "speech").iterdir() if p.is_dir()]) == 4


@pytest.mark.parametrize("damage", ["short samples", "no index", "broken index", "no samples"])
def test_a_damaged_set_is_made_anew(cache, damage):
    lines = [(TEXT, PLAIN)]
    whole = spoken(lines)[0]
    (directory,) = (p for p in (cache / "speech").iterdir() if p.is_dir())
    samples, index = directory / "samples.safetensors", directory / "index.json"
    match damage:
        case "short samples":
            samples.write_bytes(samples.read_bytes()[:-1000])
        case "no index":
            index.unlink()
        case "broken index":
            index.write_text(index.read_text()[:-5])
        case "no samples":
            samples.unlink()
    assert np.array_equal(spoken(lines)[0], whole)
    assert json.loads(index.read_text())["lines"] == [[TEXT, "en-us", 270, 50]]


def test_a_kill_leaves_nothing_that_looks_whole(cache):
    dying = """
said = speech._synthesise
def once(text, voice):
    if text == "last": os.kill(os.getpid(), signal.SIGKILL)
    return said(text, voice)
speech._synthesise = once
spoken([("first", Voice("en-us")), ("last", Voice("en-us"))], progress=False)
"""
    killed = run(dying, check=False, INTERP_CACHE=str(cache))
    assert killed.returncode == -signal.SIGKILL
    assert not [p for p in (cache / "speech").iterdir() if p.is_dir()]
    lines = [("first", PLAIN), ("last", PLAIN)]
    assert len(spoken(lines)) == 2


def test_two_processes_at_once_agree(cache):
    code = "print(spoken([(t, Voice('en-us+m2')) for t in ('rob', 'bake', 'grow') * 20], progress=False).samples.sum())"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "INTERP_CACHE": str(cache)}
    code = f"from interp.organisms.speech import *\n{code}"
    both = [
        subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    sums = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sums[0] == sums[1]
    assert len([p for p in (cache / "speech").iterdir() if p.is_dir()]) == 1


def test_threads_take_turns():
    from concurrent.futures import ThreadPoolExecutor

    lines = [(f"bake a cake {n}", voice) for n in ("one", "two", "three") for voice in (PLAIN, BREATHY)]
    alone = [synthesise(*line).tobytes() for line in lines]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda line: synthesise(*line).tobytes(), lines * 4))
    assert together == alone * 4


def test_a_bad_line_is_named(cache):
    with pytest.raises(UserError, match="^line 2: "):
        spoken([(TEXT, PLAIN), ("", PLAIN)])
    with pytest.raises(UserError, match="no lines"):
        spoken([])
