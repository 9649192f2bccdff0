"""Are pictures a function of their description, can what they show be told from their pixels, and are held-out ones apart?"""

import hashlib
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from interp.errors import UserError
from interp.organisms import world
from interp.organisms.icons import SHAPES, SHOWN
from interp.organisms.scenes import (
    COLOURS,
    NAMES,
    OBJECTS,
    PLACES,
    SIDE,
    Scene,
    any_scene,
    combinations,
    draw,
    scene_pool,
    some_objects,
)


def test_every_object_shown_is_of_the_language_and_every_class_is_shown():
    assert set(SHOWN) == set(world.OBJECTS)
    for object_class, objects in SHOWN.items():
        assert set(objects) <= set(world.OBJECTS[object_class])
        assert len(objects) >= 6
    assert not set(SHAPES) & {o for objects in world.OBJECTS.values() for o in objects}


def test_pictures_are_the_same_in_another_process_and_leave_random_states_alone():
    code = (
        "import hashlib\n"
        "from interp.organisms.scenes import draw, scene_pool\n"
        "print(hashlib.sha256(b''.join(draw(s).tobytes() for s in scene_pool(3, 1)[::40])).hexdigest())"
    )
    made = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "17", "PYTHONPATH": ":".join(sys.path)},
    )
    states = random.getstate(), np.random.get_state()[1].tolist()
    pictures = [draw(s) for s in scene_pool(3, 1)[::40]]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states
    assert {(p.mode, p.size) for p in pictures} == {("RGB", (SIDE, SIDE))}
    assert made.stdout.strip() == hashlib.sha256(b"".join(p.tobytes() for p in pictures)).hexdigest()


def test_seed_draws_the_nuisance_and_not_what_is_shown():
    one, two = scene_pool(0, 1), scene_pool(1, 1)
    assert [(s.kind, s.name, s.colour, s.place) for s in one] == [
        (s.kind, s.name, s.colour, s.place) for s in two
    ]
    assert one != two


def test_no_two_objects_give_the_same_picture():
    """With everything else equal, the pictures of two objects differ in many pixels, drawn or written."""
    for kind, names in NAMES.items():
        flat = [np.asarray(draw(Scene(kind, n, "red", "middle")), float).ravel() for n in names]
        distance = np.array([[np.abs(a - b).mean() for b in flat] for a in flat])
        assert distance[~np.eye(len(names), dtype=bool)].min() > 2  # of 255, mean over all pixels


@pytest.mark.parametrize(
    "change",
    [
        {"colour": "green"},
        {"place": "top"},
        {"shift": 14},
        {"size": -2},
        {"background": "slate"},
        {"noise": 1},
        {"skin": "dark"},
        {"glasses": True},
        {"mouth": "frown"},
    ],
)
def test_every_attribute_of_a_face_shows(change):
    scene = Scene("drawn", "nurse", "red", "middle")
    assert draw(scene).tobytes() == draw(replace(scene)).tobytes()
    assert draw(scene).tobytes() != draw(replace(scene, **change)).tobytes()


def test_the_object_can_be_told_from_the_pixels_and_random_names_cannot():
    """Nearest class mean over unseen nuisance: far above chance for the names, at chance for shuffled ones."""
    rng = random.Random(0)
    fixed = {"colour": "blue", "place": "middle", "shift": 0}
    names = [o for o in OBJECTS for _ in range(12)]
    scenes = [replace(any_scene("drawn", o, rng), **fixed) for o in names]
    pixels = np.stack([np.asarray(draw(s), float).ravel() for s in scenes])
    # backgrounds differ more than icons do
    pixels -= (
        np.median(pixels.reshape(len(pixels), -1, 3), axis=1)[:, None]
        .repeat(SIDE * SIDE, 1)
        .reshape(len(pixels), -1)
    )

    def accuracy(named):
        truth = np.array(named)
        train = np.arange(len(truth)) % 12 < 8
        means = np.stack([pixels[train & (truth == o)].mean(0) for o in OBJECTS])
        nearest = [np.argmin(((means - row) ** 2).sum(1)) for row in pixels[~train]]
        return (np.array(OBJECTS)[nearest] == truth[~train]).mean()

    assert accuracy(names) > 0.9
    assert accuracy(rng.sample(names, len(names))) < 0.15


def test_held_out_combinations_are_never_drawn_in_training():
    trained = {(s.kind, s.name, s.colour, s.place) for s in scene_pool(0, 2)}
    held = {(s.kind, s.name, s.colour, s.place) for s in scene_pool(0, 2, held_out=True)}
    assert not trained & held
    assert len(trained | held) == sum(map(len, NAMES.values())) * len(COLOURS) * len(PLACES)
    rng = random.Random(0)
    for _ in range(50):
        scene = any_scene("word", rng.choice(OBJECTS), rng, held_out=True)
        assert (scene.kind, scene.name, scene.colour, scene.place) in held


def test_every_object_is_trained_in_every_colour_and_place():
    for kind, names in NAMES.items():
        for name in names:
            seen = combinations(kind, name, held_out=False)
            assert Counter(colour for colour, _ in seen) == dict.fromkeys(COLOURS, 2)
            assert Counter(place for _, place in seen) == dict.fromkeys(PLACES, 4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("drawn", "kidnap", "red", "top"), "no drawn scene shows 'kidnap'"),
        (("shape", "bomb", "red", "top"), "no shape scene shows 'bomb'"),
        (("blank", "bomb", "red", "top"), "no blank scene shows 'bomb'"),
        (("drawn", "bomb", "pink", "top"), "'pink'; there are: red"),
        (("drawn", "bomb", "red", "left"), "'left'; there are: top"),
    ],
)
def test_what_cannot_be_shown_is_refused_by_name(values, message):
    with pytest.raises(UserError, match=message):
        Scene(*values)


def test_a_smaller_world_shows_fewer_objects_in_the_same_combinations():
    objects = some_objects(2)
    assert len(objects) == 2 * len(SHOWN)
    assert all(len(objects & set(names)) == 2 for names in SHOWN.values())
    whole, small = scene_pool(0, 1), scene_pool(0, 1, objects=objects)
    assert {s.name for s in small} == objects | set(SHAPES)
    shown = {(s.kind, s.name, s.colour, s.place) for s in whole if s.kind == "shape" or s.name in objects}
    assert {(s.kind, s.name, s.colour, s.place) for s in small} == shown
