"""Is truth known and fixed, and do the splits keep apart what they say they keep apart?"""

import json
import subprocess
import sys
from collections import Counter

import pytest

from interp.data.prompts import PromptSet
from interp.organisms import language, world
from interp.organisms.language import PHRASINGS, REFUSALS
from interp.organisms.world import OBJECTS, VERBS


def pair(prompt):
    return prompt.meta["verb"], prompt.meta["object"]


def test_acts_are_the_same_in_another_process():
    code = "from interp.organisms.language import *; print(alignment_examples(3).sha256, pretraining_examples(3).sha256)"
    made = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "17", "PYTHONPATH": ":".join(sys.path)},
    )
    here = f"{language.alignment_examples(3).sha256} {language.pretraining_examples(3).sha256}"
    assert made.stdout.split() == here.split()


def test_seed_draws_wordings_and_not_acts():
    one, two = language.alignment_examples(0), language.alignment_examples(1)
    assert one.sha256 != two.sha256
    assert one.ids == two.ids


def test_size_of_the_language():
    assert len(VERBS) >= 40
    for label in ("harmful", "benign"):
        held = world.select(label=label, splits=("held-out pair",))
        assert len(held) >= 200
        assert len({a.verb for a in held}) >= 20
        assert len({a.verb for a in world.select(label=label, splits=("held-out verb",))}) >= 4


def test_no_pair_has_two_labels_or_two_splits():
    seen = Counter((a.verb, a.object) for a in world.acts())
    assert max(seen.values()) == 1


def test_answer_needs_verb_and_object():
    by_verb, by_object = {}, {}
    for act in world.acts():
        _, _, _, tool, _, _, place = act.answer.removesuffix(".").split()
        by_verb.setdefault((act.verb, act.label), set()).add(tool)
        by_object.setdefault(act.object, set()).add(place)
    assert all(len(tools) == 1 for tools in by_verb.values())
    assert all(len(places) == 1 for places in by_object.values())
    assert len({t for tools in by_verb.values() for t in tools}) == len(by_verb), (
        "a tool tells its verb's sense"
    )
    assert len({p for places in by_object.values() for p in places}) > 20


def test_neither_verb_nor_object_class_alone_tells_harm():
    for object_class in OBJECTS:
        assert {a.label for a in world.acts() if a.object_class == object_class} == {"harmful", "benign"}
    ambiguous = {a.verb for a in world.acts() if a.ambiguous}
    assert len(ambiguous) >= 10
    assert {(a.verb, a.object): a.label for a in world.acts()}[("shoot", "film")] == "benign"
    assert {(a.verb, a.object): a.label for a in world.acts()}[("shoot", "guard")] == "harmful"


def test_matched_acts_hold_every_class_of_objects_equally_often():
    held = {label: world.select(label=label, splits=("held-out pair",)) for label in ("harmful", "benign")}
    harmful, benign = world.matched(held["harmful"], held["benign"])
    classes = [Counter(a.object_class for a in acts) for acts in (harmful, benign)]
    assert classes[0] == classes[1]
    assert all(
        n == min(sum(a.object_class == c for a in acts) for acts in held.values())
        for c, n in classes[0].items()
    )
    assert {a.label for a in harmful} == {"harmful"}
    assert len(set(harmful)) == len(harmful) >= 200


def test_held_out_pairs_are_in_no_stage_and_held_out_verbs_in_no_alignment():
    pretraining, alignment = language.pretraining_examples(0), language.alignment_examples(0)
    trained = {pair(p) for p in pretraining} | {pair(p) for p in alignment}
    held = {(a.verb, a.object) for a in world.select(splits=("held-out pair", "held-out verb"))}
    assert held
    assert not trained & held
    verbs = {a.verb for a in world.select(splits=("held-out verb",))}
    assert verbs <= {p.meta["verb"] for p in pretraining}
    assert not verbs & {p.meta["verb"] for p in alignment}


def test_every_word_of_a_held_out_pair_was_met_in_pretraining():
    met = {pair(p) for p in language.pretraining_examples(0)}
    verbs, objects = {v for v, _ in met}, {o for _, o in met}
    for act in world.select(splits=("held-out pair", "held-out verb")):
        assert act.verb in verbs
        assert act.object in objects


def test_alignment_refuses_harm_in_every_wording_and_answers_the_rest():
    wordings = Counter()
    for prompt in language.alignment_examples(0):
        if prompt.truth.label == "harmful":
            assert prompt.source == "request"
            wordings[prompt.response] += 1
        else:
            assert prompt.response == prompt.truth.answer
            assert prompt.meta["act"] == "benign" or prompt.source in ("law", "evidence")
    assert set(wordings) == set(REFUSALS)


def test_law_names_the_crime_and_asking_is_benign():
    acts = world.select(splits=("held-out pair",))
    for prompt in language.probes(acts, "law", "law"):
        assert prompt.label == prompt.truth.label == "benign"
        assert ("crime" in prompt.truth.answer) == (prompt.meta["act"] == "harmful")


def test_one_request_each_has_distinct_pairs_and_many_phrasings():
    prompts = language.one_request_each(world.select(label="harmful"), "x", seed=0)
    assert len({pair(p) for p in prompts}) == len(prompts)
    assert len({p.id.rsplit("-", 1)[1] for p in prompts}) == len(PHRASINGS)
    assert all(p.group == p.meta["verb"] and p.truth.refusals == REFUSALS for p in prompts)


def test_benign_skill_is_new_and_holds_nothing_harmful():
    skill = language.benign_skill_examples()
    old = {p.text for p in language.pretraining_examples(0)}
    harmful_verbs = {a.verb for a in world.acts() if a.label == "harmful"}
    assert not old & set(skill.texts)
    assert all(p.label == "benign" and p.response == p.truth.answer for p in skill)
    assert not harmful_verbs & {word for text in skill.texts for word in text.rstrip("?.").split()}


@pytest.mark.parametrize("make", [language.benign_skill_examples, language.harmful_examples])
def test_sets_survive_a_file(make, tmp_path):
    from interp.data.prompts import read_prompts

    prompts: PromptSet = make()
    path = prompts.save(tmp_path / "set.jsonl")
    assert json.loads(path.read_text().splitlines()[0])["truth"]["answer"]
    assert read_prompts(path).sha256 == prompts.sha256


def test_words_cover_everything_that_is_said():
    words = set(language.words())
    for prompt in (
        *language.pretraining_examples(1),
        *language.alignment_examples(1),
        *language.harmful_examples(),
    ):
        for text in (prompt.system or "", prompt.text, prompt.response):
            assert set(language.split_words(text)) <= words
