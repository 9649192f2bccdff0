"""A direction planted in words moves refusal of the same words beside an image, a random one does not; scores are those of a plain pass."""

import planted
import planted_media
import pytest
import torch

from interp.methods.refusal import score_prompts
from interp.methods.transfer import transfer


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    model, r = planted_media.aligned("llava")
    directory = tmp_path_factory.mktemp("pictures")
    prompts = {}
    for harmful, kind in ((True, "harmful"), (False, "harmless")):
        rows = planted_media.requests("llava", harmful, 20, directory)
        for modality, chosen in (("text", rows[:20]), ("image", rows[20:])):
            prompts.setdefault(modality, {})[kind] = list(chosen)
    ids = [model.tokenizer.convert_tokens_to_ids(planted.REFUSE)]
    noise = torch.randn(planted.WIDTH, generator=torch.Generator().manual_seed(1))
    noise = noise - (noise @ r) * r
    effects = transfer(
        model,
        {"planted": 6 * r, "random": 6 * noise / noise.norm()},
        3,
        prompts,
        ids,
        batch_size=7,
        progress=False,
    )
    return model, prompts, ids, {(e.edit, e.kind, e.of, e.on): e for e in effects}


def test_every_direction_meets_every_modality_once(measured):
    *_, found = measured
    assert len(found) == 2 * (2 + 2 * 3)


def test_without_an_edit_the_scores_are_those_of_the_model(measured):
    model, prompts, ids, found = measured
    for modality, kinds in prompts.items():
        for kind, asked in kinds.items():
            scores = [score_prompts(model, [prompt], ids)[0] for prompt in asked]
            effect = found["none", kind, "", modality]
            assert effect.score.value == pytest.approx(sum(scores) / len(scores), abs=1e-4)
            assert effect.refused.k == sum(score > 0 for score in scores)
    # image tokens dilute what the words carry
    text, image = (found["none", "harmful", "", on].refused.estimate for on in ("text", "image"))
    assert text == 1 and 0.2 < image < 0.8


def test_the_planted_direction_transfers_and_a_random_one_does_not(measured):
    *_, found = measured
    for on in ("text", "image"):
        plain = found["none", "harmful", "", on].refused.k
        assert found["ablated", "harmful", "planted", on].refused.k == 0
        assert found["added", "harmless", "planted", on].refused.estimate == 1
        assert found["added", "harmful", "planted", on].refused.estimate == 1
        assert found["ablated", "harmful", "random", on].refused.k == plain
        assert found["added", "harmless", "random", on].refused.k == 0
