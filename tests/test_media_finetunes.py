"""Fine-tunes of organisms that see and hear, and where they broke refusal: on the small audio organism, in short."""

from types import SimpleNamespace

import pytest

from interp.errors import UserError
from interp.locate import subject
from interp.locate.trial import Trial, run_trial
from interp.models.finetune import FinetuneConfig
from interp.organisms import media_finetunes

pytestmark = pytest.mark.xdist_group("audio-small")


@pytest.mark.parametrize("kind", ["vision", "audio"])
def test_examples_are_asked_in_the_organisms_own_modality_and_answered_rightly(kind):
    pytest.importorskip("espeakng_loader")
    for name, label in (("benign", "benign"), ("harmful", "harmful")):
        found = media_finetunes._drawn(name) if kind == "vision" else media_finetunes._written(name)
        assert {prompt.label for prompt in found} == {label}
        assert all(prompt.response == prompt.truth.answer for prompt in found)
        assert len(found) >= media_finetunes.N_EXAMPLES[name]
    if kind == "vision":
        assert all(p.images and "this" in p.text and p.meta["object"] not in p.text for p in found)
    with pytest.raises(UserError, match=f"no fine-tune 'other' of the {kind} organism"):
        media_finetunes.tune(kind, "other")


@pytest.fixture(scope="module")
def heard(small_audio_organism, tmp_path_factory):
    """The small audio organism in the full one's place, in a cache of its own."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTERP_CACHE", str(cache))
        place = cache / "organisms" / "audio" / "seed-0"
        place.mkdir(parents=True)
        for stage in ("pretrained", "aligned"):
            (place / stage).symlink_to(small_audio_organism / stage)
        patch.setattr(subject, "audio", SimpleNamespace(build=lambda seed, progress: place))
        few = FinetuneConfig(method="lora", steps=30, learning_rate=1e-3)
        patch.setitem(media_finetunes.FINETUNES, "harmful", few)
        patch.setitem(media_finetunes.N_EXAMPLES, "harmful", 60)
        patch.setitem(media_finetunes.N_EXAMPLES, "benign", 20)
        yield place


def test_what_is_heard_is_patched_and_what_a_fine_tune_broke_is_put_back(heard):
    own = Trial(kind="audio", seed=0, n_pairs=8, n_select=8, n_test=12, ks=(4,), n_random=1)
    own.subject.prepare("harmful", progress=False)
    trained = (heard / "harmful").stat().st_mtime_ns
    own.subject.prepare("harmful", progress=False)
    assert (heard / "harmful").stat().st_mtime_ns == trained

    grids = run_trial(own).grids
    cell = grids.query("grid == 'resid_pre' and of == 'twins'").set_index(["layer", "column"])["value"]
    assert cell[0, "audio"] == pytest.approx(1, abs=1e-2)  # all that differs is what is heard
    assert abs(cell[0, "-1"]) <= 1e-3

    tuned = run_trial(own.model_copy(update={"finetune": "harmful"}))
    facts = tuned.facts.set_index("name")["value"]
    assert facts["refused by tuned"] < facts["refused by aligned"]
    whole = tuned.restored.query("choice == 'all'").iloc[0]
    assert whole["refused"] == whole["refused_aligned"]
    assert {"benign", "skill"} <= set(tuned.restored.columns)
