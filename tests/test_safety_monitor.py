"""The monitor sees what training does to refusal, costs nothing it need not, and warns in time."""

from dataclasses import replace

import pandas as pd
import pytest
import tiny
import torch
from transformers import TrainerControl, TrainerState

from interp.data.prompts import PromptSet
from interp.errors import UserError
from interp.geometry.directions import Direction
from interp.methods.refusal import refusal_score
from interp.methods.safety_monitor import SafetyMonitor
from interp.models.finetune import FinetuneConfig, train
from interp.models.sites import Site

PROBES = tiny.prompts(6, seed=3)


def opening(model) -> tuple[int, ...]:
    """Tokens that together hold most of the probability on the probes: this model's "refusals"."""
    probabilities = model.last_logits(model.encode(PROBES)).softmax(-1).mean(0)
    return tuple(probabilities.argsort(descending=True)[:40].tolist())


def undoing(model, ids) -> PromptSet:
    """Examples that teach to open with something else."""
    other = next(i for i in range(8, 68) if i not in ids)
    word = model.tokenizer.decode([other])
    return PromptSet([replace(p, response=f"{word} {word}") for p in PROBES], "undoing")


CONFIG = FinetuneConfig(method="full", steps=12, batch_size=6, learning_rate=1e-2, schedule="constant")


def test_the_first_row_is_the_aligned_model_and_its_numbers_are_those_of_a_forward_pass():
    model = tiny.model()
    ids = opening(model)
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0)).double()
    monitor = SafetyMonitor(model, PROBES, refusal_ids=ids, direction=Direction(vector, "resid_pre.2", -1))
    row = monitor.to_frame().iloc[0]
    logits = model.last_logits(model.encode(PROBES))
    assert row.step == 0 and row.kl == 0
    assert row.refusal_score == pytest.approx(float(refusal_score(logits, ids).mean()))
    assert row.leak == pytest.approx(1 - float(logits.double().softmax(-1)[:, list(ids)].sum(-1).mean()))
    from interp.models.activations import capture

    site = Site(2, "resid_pre")
    values = capture(model, PROBES, site, progress=False)[site].double()
    assert row.projection == pytest.approx(float((values @ (vector / vector.norm())).mean()), rel=1e-5)


def test_it_warns_when_refusal_goes_and_stops_training_when_asked(capsys):
    for stop in (False, True):
        model = tiny.model()
        ids = opening(model)
        monitor = SafetyMonitor(model, PROBES, refusal_ids=ids, every=2, alarm=0.2, stop=stop)
        train(model, undoing(model, ids), CONFIG, callbacks=[monitor], progress=False)
        frame = monitor.to_frame()
        assert frame.leak.iloc[-1] > frame.leak.iloc[0] + 0.2
        assert frame.refusal_score.iloc[-1] < frame.refusal_score.iloc[0]
        assert frame.kl.iloc[-1] > 0.1 and monitor.alarmed_at is not None
        assert capsys.readouterr().err.count("safety alarm at step") == 1
        if stop:
            assert frame.step.iloc[-1] == monitor.alarmed_at < 12
        else:
            assert frame.step.tolist() == [0, 2, 4, 6, 8, 10, 12]


def test_training_that_leaves_refusal_alone_sets_off_nothing():
    model = tiny.model()
    ids = opening(model)
    monitor = SafetyMonitor(model, PROBES, refusal_ids=ids, every=5, live=False)
    config = CONFIG.model_copy(update={"learning_rate": 1e-6})
    train(model, undoing(model, ids), config, callbacks=[monitor], progress=False)
    assert monitor.alarmed_at is None
    assert monitor.to_frame().step.tolist() == [0, 5, 10, 12], "and the last step"
    assert monitor.to_frame().projection.isna().all(), "no direction was given"


def test_watching_changes_nothing_of_the_training():
    plain, watched = tiny.model("gpt2"), tiny.model("gpt2")
    ids = opening(plain)
    train(plain, undoing(plain, ids), CONFIG, progress=False)
    monitor = SafetyMonitor(watched, PROBES, refusal_ids=ids, every=1, live=False)
    train(watched, undoing(watched, ids), CONFIG, callbacks=[monitor], progress=False)
    for a, b in zip(plain.module.parameters(), watched.module.parameters(), strict=True):
        assert torch.equal(a, b)


def test_it_follows_lora_factors_put_in_after_it_was_made():
    model = tiny.model()
    ids = opening(model)
    monitor = SafetyMonitor(model, PROBES, refusal_ids=ids, every=12, live=False)
    config = CONFIG.model_copy(update={"method": "lora", "lora_rank": 4})
    train(model, undoing(model, ids), config, callbacks=[monitor], progress=False)
    assert monitor.to_frame().kl.iloc[-1] > 0.01


def test_a_resumed_run_goes_on_with_the_curve(tmp_path):
    out = tmp_path / "new" / "monitor.parquet"
    model = tiny.model()
    ids = opening(model)
    first = SafetyMonitor(model, PROBES, refusal_ids=ids, every=2, out=out, live=False)
    config = CONFIG.model_copy(update={"steps": 6, "save_every": 4})
    train(model, undoing(model, ids), config, work=tmp_path, callbacks=[first], progress=False)
    resumed = tiny.model()
    second = SafetyMonitor(resumed, PROBES, refusal_ids=ids, every=2, out=out, live=False)
    assert len(pd.read_parquet(out)) == 4, "making a monitor does not touch an earlier curve"
    (tmp_path / "checkpoint-6").rename(tmp_path / "gone")
    train(resumed, undoing(resumed, ids), config, work=tmp_path, callbacks=[second], progress=False)
    assert second.to_frame().step.tolist() == [0, 2, 4, 6]
    pd.testing.assert_frame_equal(first.to_frame(), second.to_frame(), atol=1e-5, rtol=1e-5)


def test_only_the_first_process_measures():
    model = tiny.model()
    monitor = SafetyMonitor(model, PROBES, refusal_ids=opening(model), every=1)
    state = TrainerState(global_step=1, is_world_process_zero=False)
    monitor.on_step_end(None, state, TrainerControl())
    assert len(monitor.rows) == 1


def test_bad_input_is_named():
    model = tiny.model()
    with pytest.raises(UserError, match="needs harmful requests and the tokens"):
        SafetyMonitor(model, [], refusal_ids=(1,))
    with pytest.raises(UserError, match="at least 1 step, got 0"):
        SafetyMonitor(model, PROBES, refusal_ids=opening(model), every=0)
    with pytest.raises(UserError, match=r"refuses few of these probes before training \(leak 1.00\)"):
        SafetyMonitor(model, PROBES, refusal_ids=(0,))
