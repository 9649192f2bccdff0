"""The study on checkpoints whose truth is planted: what is lost, where, and why comes back; itself against itself is zero."""

import math
import subprocess
import sys
import time
from dataclasses import replace

import planted
import pytest
import tiny
import torch

from interp.data.prompts import Prompt, PromptSet, Truth
from interp.errors import UserError
from interp.evals.verdicts import Outcome
from interp.models.finetune import save_checkpoint
from interp.results import StudyResult
from interp.study import StudyConfig, make_judge, plan_study, run_study, study_prompts

BROKEN_AT = 6


def questions(harmful: bool, seed: int) -> PromptSet:
    """Planted prompts with their truth: the model answers in one word."""
    label = "harmful" if harmful else "benign"
    return PromptSet(
        [
            Prompt(
                text=p.text,
                id=p.id,
                label=label,
                group=f"group-{i % 12}",
                truth=Truth(label, planted.COMPLY, (planted.REFUSE,)),
            )
            for i, p in enumerate(planted.prompt_set(harmful, 80, seed))
        ],
        name=label,
    )


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """An aligned checkpoint with its prompts, and one whose block 6 takes the planted direction out again."""
    root = tmp_path_factory.mktemp("checkpoints")
    model, r = planted.planted()
    save_checkpoint(model, root / "aligned")
    (root / "aligned" / "prompts").mkdir()
    questions(True, 5).save(root / "aligned" / "prompts" / "harmful.jsonl")
    questions(False, 6).save(root / "aligned" / "prompts" / "harmless.jsonl")
    with torch.no_grad():
        attention = model.module.model.layers[BROKEN_AT].self_attn
        attention.v_proj.weight[0] += r
        attention.o_proj.weight[:, 0] -= 1.2 * r
    save_checkpoint(model, root / "tuned")
    return root


@pytest.fixture(scope="module")
def study(checkpoints):
    root = checkpoints
    config = StudyConfig(
        aligned=str(root / "aligned"),
        tuned=(str(root / "tuned"), str(root / "aligned")),
        n_train=30,
        n_val=16,
        n_test=30,
        max_new_tokens=1,
    )
    result, path = run_study(config, out=root / "results", progress=False)
    return config, result, path


def test_the_loss_is_measured_located_and_explained(study):
    _, result, _ = study
    tuned = result.tuned[0]
    assert result.harmful.rate(Outcome.REFUSED).estimate == 1 and result.harmless.over_refusal.estimate == 0
    assert tuned.harmful.jsr.estimate > 0.9 and tuned.vs_aligned.low > 0.8
    assert tuned.lost_at == BROKEN_AT
    assert (tuned.shift.value[:BROKEN_AT] == 0).all() and (tuned.shift.high[BROKEN_AT:] < 0).all()
    assert (tuned.cosine[planted.PLANTED_AT : BROKEN_AT] > 0.999).all()
    assert tuned.norm_ratio[planted.PLANTED_AT] == pytest.approx(1)
    assert result.ablation["direction"]["harmful"].jsr.estimate == 1
    # shuffled labels are no control here: prompts of this model differ along the planted direction only
    assert result.ablation["random"]["harmful"].jsr.estimate == 0
    assert tuned.addition["random"].rate(Outcome.REFUSED).estimate < 0.1
    assert result.ablation["direction"]["harmless"].rate(Outcome.COMPLIED_BENIGN).estimate == 1


def test_a_checkpoint_against_itself_is_zero_everywhere_and_the_report_says_so(study):
    _, result, path = study
    same = result.tuned[1]
    assert same.same_weights and not result.tuned[0].same_weights
    assert same.kl.value == same.kl.low == same.kl.high == 0
    assert same.perplexity["tuned"] == same.perplexity["aligned"]
    assert (same.shift.value == 0).all() and same.lost_at is None
    assert (abs(same.cosine[1:] - 1) < 1e-9).all() and same.vs_aligned.difference == 0
    assert any("compared with itself" in note for note in result.notes)
    assert "itself" in (path / "report.html").read_text()


def test_a_second_run_reads_back_and_a_broken_one_resumes(study, checkpoints, monkeypatch):
    config, result, path = study
    root = checkpoints
    from interp.study import workbench as module

    def no_load(self, name):
        raise AssertionError("a finished study needs no model")

    monkeypatch.setattr(module.OneModel, "__call__", no_load)
    again, same_path = run_study(config, out=root / "results", progress=False)
    assert same_path == path and again.to_frame().equals(result.to_frame())
    assert not (path / "scratch").exists()
    monkeypatch.undo()

    calls = []
    real = module.generate

    def dying(model, prompts, **given):
        calls.append(model.name)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(model, prompts, **given)

    monkeypatch.setattr(module, "generate", dying)
    with pytest.raises(KeyboardInterrupt):
        run_study(config, out=root / "other", progress=False)
    assert not list((root / "other" / "study").glob("2*"))
    before = len(calls)
    resumed, _ = run_study(config, out=root / "other", progress=False)
    assert resumed.to_frame().equals(result.to_frame())
    # of the six calls before the break only the interrupted arm's two are made again
    assert len(calls) - before == (2 + 2 + 3 * 2 + 2 * (2 + 3 * 2)) - 4


def test_what_decides_the_answers_is_part_of_a_studys_name(study, checkpoints, tmp_path, monkeypatch):
    config, *_ = study
    from interp import study as module

    class Named(Exception):
        pass

    def stop(out, kind, slug, config, inputs, sources):
        raise Named(sorted(inputs), {path.name for path in sources})

    monkeypatch.setattr(module, "open_run", stop)
    template = tmp_path / "t.jinja"
    template.write_text(tiny.TEMPLATE)
    judge = f"harmbench={checkpoints / 'aligned'}"
    with pytest.raises(Named) as found:
        run_study(config.model_copy(update={"chat_template": str(template), "judge": judge}), out=tmp_path)
    inputs, sources = found.value.args
    assert {"chat template", "weights of the judge"} <= set(inputs)
    assert {"phrases.json", "judges.py", "results.py"} <= sources


def test_a_constant_group_leaves_no_interval_and_ends_no_study(checkpoints, tmp_path):
    for kind, harmful in (("harmful", True), ("harmless", False)):
        prompts = [replace(p, group="one") for p in questions(harmful, 5 + (not harmful))]
        PromptSet(prompts, name=kind).save(tmp_path / f"{kind}.jsonl")
    config = StudyConfig(
        aligned=str(checkpoints / "aligned"), tuned=(str(checkpoints / "tuned"),), n_train=30, n_val=16, n_test=30,
        harmful=str(tmp_path / "harmful.jsonl"), harmless=str(tmp_path / "harmless.jsonl"), max_new_tokens=1,
    )  # fmt: skip
    result, path = run_study(config, out=tmp_path / "results", progress=False)
    assert math.isnan(result.tuned[0].kl.low) and not math.isnan(result.tuned[0].kl.value)
    assert (
        "nan" not in (path / "report.html").read_text().split("</style>")[-1].lower().split("provenance")[0]
    )


def test_kill_nine_of_a_whole_study_loses_no_finished_step(study, checkpoints, tmp_path):
    _, result, _ = study
    aligned, tuned = str(checkpoints / "aligned"), str(checkpoints / "tuned")
    code = "import sys; from interp.cli import main; sys.exit(main(sys.argv[1:]))"
    sizes = ["--n-train", "30", "--n-val", "16", "--n-test", "30", "--max-new-tokens", "1"]
    command = [sys.executable, "-c", code, "study", aligned, tuned, aligned, *sizes, "--out", str(tmp_path)]
    home, kept = tmp_path / "study", {}
    for awaited in ("aligned/selection.json", "tuned-0/behaviour.json", "tuned-1/behaviour.json"):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while not any(home.glob(f".*/{awaited}")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.005)
        process.kill()
        process.communicate()
        assert not [path for path in home.iterdir() if not path.name.startswith(".")], "it looks complete"
        for path, stamp in kept.items():
            assert path.stat().st_mtime_ns == stamp, f"{path.name} was made again"
        kept = {path: path.stat().st_mtime_ns for path in home.glob(".*/*/*.json")}
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (directory,) = [
        path for path in home.iterdir() if not path.name.startswith(".") and not path.is_symlink()
    ]
    assert str(directory / "report.html") in done.stdout
    assert StudyResult.from_store(directory).to_frame().equals(result.to_frame())
    assert not list(home.glob(".partial*"))


def test_the_plan_names_checkpoints_prompts_time_and_memory(study):
    config, *_ = study
    plan = plan_study(config)
    for word in ("aligned", "tuned", "30 train", "minutes", "GiB"):
        assert word in plan, plan


def test_bad_input_is_named(checkpoints, tmp_path):
    root = checkpoints
    aligned = str(root / "aligned")
    with pytest.raises(UserError, match="--harmless is missing"):
        study_prompts(StudyConfig(aligned=aligned, tuned=(aligned,), harmful="x.jsonl"))
    with pytest.raises(UserError, match="unknown judge 'nobody'"):
        make_judge(StudyConfig(aligned=aligned, tuned=(aligned,), judge="nobody"), [])
    with pytest.raises(UserError, match="no such directory"):
        run_study(StudyConfig(aligned="/nowhere/at/all", tuned=(aligned,)), out=tmp_path, progress=False)
    # a fine-tune of another base has no layers to compare
    save_checkpoint(tiny.model(), tmp_path / "other")
    with pytest.raises(
        UserError, match="has 4 layers of width 32, .* has 10 of 32; compare fine-tunes of one base"
    ):
        config = StudyConfig(
            aligned=aligned, tuned=(str(tmp_path / "other"),), n_train=10, n_val=8, n_test=4, max_new_tokens=1
        )
        run_study(config, out=tmp_path, progress=False)
    # a model that refuses nothing is no aligned model
    with pytest.raises(UserError, match="refused none|refuses none"):
        config = StudyConfig(
            aligned=str(root / "tuned"),
            tuned=(aligned,),
            harmful=str(root / "aligned/prompts/harmful.jsonl"),
            harmless=str(root / "aligned/prompts/harmless.jsonl"),
            n_train=10,
            n_val=4,
            n_test=4,
            max_new_tokens=1,
        )
        run_study(config, out=tmp_path, progress=False)
    assert not list((tmp_path / "study").glob("2*"))
