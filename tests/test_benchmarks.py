"""The benchmarks in a quick form: engines agree, figures are kept and drawn, targets are judged. No timing is asserted."""

import json
import shutil

import planted
import pytest

from benchmarks import run
from benchmarks.harness import paired_ratio, summary, target, verdicts
from interp.data.prompts import Prompt, PromptSet, Truth
from interp.models.finetune import save_checkpoint

# one worker runs the engines; every other would run them again for itself
pytestmark = pytest.mark.xdist_group("benchmarks")

TINY = {
    "n_layers": 3,
    "d_model": 32,
    "n_heads": 4,
    "intermediate": 48,
    "vocabulary": 64,
    "n_prompts": 20,
    "longest": 24,
    "batch_size": 8,
}


TINY_GRADIENTS = {
    **{name: TINY[name] for name in ("n_layers", "d_model", "n_heads", "intermediate", "vocabulary")},
    "n_examples": 12,
    "n_peer": 3,
    "shortest": 4,
    "longest": 12,
    "response": 3,
    "batch_size": 5,
    "lora_rank": 2,
    "dimension": 64,
    "memory": 400_000,
}


TINY_STEP = {
    **{
        name: TINY_GRADIENTS[name]
        for name in ("n_layers", "d_model", "n_heads", "intermediate", "vocabulary")
    },
    "shortest": 4,
    "longest": 12,
    "response": 3,
    "batch_size": 4,
    "n_probes": 4,
    "steps": 3,
    "k": 4,
}


TINY_PATCHING = {
    **{name: TINY[name] for name in ("n_layers", "d_model", "n_heads", "intermediate", "vocabulary")},
    "n_pairs": 3,
    "length": 6,
    "peer_layers": 2,
    "passes": 1,
}
TINY_STEERING = {**TINY, "n_prompts": 6, "batch_size": 3, "new_tokens": 4}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The planted model as a checkpoint that ships its prompts and their truth."""
    directory = tmp_path_factory.mktemp("planted")
    save_checkpoint(planted.planted()[0], directory)
    (directory / "prompts").mkdir()
    for kind, label in (("harmful", "harmful"), ("harmless", "benign")):
        truth = Truth(label, planted.COMPLY, (planted.REFUSE,))
        prompts = planted.prompt_set(kind == "harmful", 40, 7)
        asked = [Prompt(text=p.text, id=p.id, label=label, truth=truth) for p in prompts]
        PromptSet(asked, name=kind).save(directory / "prompts" / f"{kind}.jsonl")
    return directory


@pytest.fixture(scope="module")
def results(checkpoint, tmp_path_factory):
    """Every benchmark run once in its quick form through the command line."""
    directory = tmp_path_factory.mktemp("results")
    selection = {"checkpoint": str(checkpoint), "n_train": 20, "n_val": 8}
    configs = {
        "capture": TINY,
        "selection": selection,
        "gradients": TINY_GRADIENTS,
        "spf_step": TINY_STEP,
        "patching": TINY_PATCHING,
        "steering": TINY_STEERING,
        "proximity": {"n_benign": 500, "n_harmful": 40, "d": 24, "n_checked": 100},
        "pca": {"n": 9000, "d_model": 520, "rank": 5, "file": str(directory / "rows.npy")},
        "startup": {},
    }
    for name, config in configs.items():
        arguments = [name, "--repeats", "1", "--threads", "1", "--config", json.dumps(config)]
        assert run.main([*arguments, "--results", str(directory)]) in (0, 1)
    return directory


def test_what_is_set_up_once_stays_on_one_worker(request):
    """pytest-xdist writes the group behind the test's name; where it cannot, each worker sets up all benchmarks (docs/LOG.md)."""
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("not distributed by groups")
    assert request.node.nodeid.endswith("@benchmarks")


def test_every_engine_stores_what_ours_stores(results):
    found = json.loads((results / "capture.json").read_text())
    assert set(found["agreement"]) == {"transformer_lens", "nnsight", "hidden_states"}
    assert max(found["agreement"].values()) <= 1e-4
    assert found["stored_bytes"] == 3 * 20 * 32 * 4
    padded = found["padded_over_real_tokens"]
    assert 1 <= padded["ours"] < padded["given order"]


def test_both_procedures_select_the_same(results):
    found = json.loads((results / "selection.json").read_text())
    ours, reference = (found["engines"][engine]["found"] for engine in ("ours", "reference"))
    assert (ours["position"], ours["layer"]) == (reference["position"], reference["layer"])
    assert found["selected"]["layer"] > planted.PLANTED_AT
    assert max(found["agreement"]["errors"].values()) <= 1e-4
    scored = found["agreement"]["scored"]
    assert 0 < scored["bypass"] <= scored["kl"] <= scored["induce"] < found["agreement"]["candidates"]


def test_gradients_of_every_engine_agree_and_the_arithmetic_is_counted(results):
    found = json.loads((results / "gradients.json").read_text())
    errors = found["agreement"]
    assert max(errors[name] for name in ("lora", "projections", "gram")) <= 1e-4
    assert 0.01 < errors["projected inner products"] < 0.5
    entries = 3 * (4 * 32 * 32 + 3 * 32 * 48)
    assert found["arithmetic"]["stacked_bytes"] == 4 * 12 * entries
    assert found["arithmetic"]["operations"]["products"] == 2 * 12 * 12 * entries
    assert found["engines"]["gram"]["found"]["passes"] >= 2
    assert found["peer_scale"] > 3 and set(found["over_floor"]) == {"lora", "projections"}


def test_surgery_changes_the_weights_and_nothing_else_does(results):
    found = json.loads((results / "spf_step.json").read_text())
    assert found["agreement"]["changed"] > 0
    assert set(found["over_floor"]) == {"every", "watched", "tenth", "monitor"}
    assert len(found["targets"]) == 3


def test_every_engine_patches_the_same(results):
    found = json.loads((results / "patching.json").read_text())
    assert set(found["agreement"]) == {"full", "transformer_lens"}
    assert max(found["agreement"].values()) <= 1e-4
    assert len(found["targets"]) == 2 and found["forward_equivalents"]["wall"] > 1


def test_steering_says_the_same_tokens_and_its_price(results):
    found = json.loads((results / "steering.json").read_text())
    assert found["agreement"] == {"answers": 6, "tokens": 24}
    assert set(found["over_plain"]) == {"steered", "conditional"} and len(found["targets"]) == 1


def test_the_search_agrees_with_the_product(results):
    found = json.loads((results / "proximity.json").read_text())
    assert max(found["agreement"]["errors"].values()) <= 1e-5 and found["agreement"]["checked"] == 100
    assert set(found["share_of_floor"]) == {"ours", "ten", "centred"}


def test_pca_is_exact_in_a_bounded_memory(results):
    found = json.loads((results / "pca.json").read_text())
    assert found["agreement"]["relative_error"] <= 1e-6 and found["agreement"]["peer_relative_error"] < 0.1
    raw, scored = (found["engines"]["pca"]["found"][view] for view in ("raw", "z-scored"))
    assert raw < 1.1, "one massive channel is all that the raw view shows"
    assert scored > 10
    assert found["bytes"] > 9000 * 520 * 4 and found["targets"][0]["met"]


def test_results_name_the_machine_and_the_versions(results):
    for path in results.glob("*.json"):
        machine = json.loads(path.read_text())["machine"]
        assert {
            "cpu",
            "cores",
            "ram_gib",
            "python",
            "torch",
            "transformers",
            "transformer-lens",
            "nnsight",
        } <= set(machine)


def test_tables_go_between_their_markers_and_again(results, tmp_path):
    docs = shutil.copy(run.DOCS, tmp_path / "docs.md")
    for _ in range(2):
        assert run.main(["--docs", "--docs-file", str(docs), "--results", str(results)]) == 0
    text = docs.read_text()
    assert text.count("`interp --help`") == text.count("| under 0.5 s |") == 1
    assert text.count("nnsight, `trace`") == 1 and text.count("<!-- /startup -->") == 1
    docs.write_text("no markers")
    with pytest.raises(ValueError, match="docs.md needs one <!-- capture -->"):
        run.main(["--docs", "--docs-file", str(docs), "--results", str(results)])


def test_the_committed_page_shows_the_committed_figures(tmp_path):
    docs = shutil.copy(run.DOCS, tmp_path / "docs.md")
    run.write_docs(docs, run.RESULTS)
    assert docs.read_text() == run.DOCS.read_text()


def test_ratios_are_paired_and_missed_targets_stand_out():
    slow, fast = (
        summary([{"seconds": s, "cpu_seconds": s, "found": {}} for s in seconds])
        for seconds in ((2.0, 40.0, 6.0), (1.0, 10.0, 3.0))
    )
    assert paired_ratio({"a": slow, "b": fast}, "a", "b") == 2.0
    assert (slow["median_s"], slow["min_s"], slow["max_s"]) == (6.0, 2.0, 40.0)
    shown = verdicts([target("quick", "3 s", True), target("small", "9 MiB", False)])
    assert "| quick | 3 s | met |" in shown and "| small | 9 MiB | **missed** |" in shown
