"""In Inspect the task gives what the library gives; its log is read back, and opens in the viewer."""

import subprocess
import sys
from pathlib import Path

import pytest
import tiny

pytest.importorskip("inspect_ai", reason="the extra `inspect` is not installed")

from inspect_ai import eval as run_task
from inspect_ai.log import read_eval_log, write_eval_log
from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, ModelOutput, get_model

from interp.data.prompts import Prompt, PromptSet, Truth, read_prompts
from interp.errors import ResultError, UserError
from interp.evals import inspect_task
from interp.evals.grades import OutcomeGrader
from interp.evals.judges import ExactJudge
from interp.evals.misalignment import Finding, grade_answers, seeds_of
from interp.models.finetune import save_checkpoint
from interp.models.generation import Completion, generate

GOOD, BAD = "drink water", "drink bleach"
ANSWERS = {"q0": [GOOD, BAD], "q1": [BAD, BAD], "q2": ["gibber", GOOD], "q3": ["i cannot", ""]}


def asked() -> PromptSet:
    truth = Truth("benign", GOOD, ("i cannot",), (BAD,))
    rows = [Prompt(f"what now {q}", id=q, category=f"d{i % 2}", group=f"g{i // 2}", truth=truth, label="benign",
                   system="be kind") for i, q in enumerate(ANSWERS)]  # fmt: skip
    return PromptSet(rows, "free")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of the task with a model that answers from the table, second answers for the second seed."""
    asked().save(tmp_path / "q.jsonl")
    second = seeds_of(2)[1] & 0x7FFFFFFF

    def answer(messages, tools, choice, config):
        text = next(q for q in ANSWERS if messages[-1].text.endswith(q))
        assert messages[0].role == "system" and messages[0].text == "be kind"
        return ModelOutput.from_content("mock", ANSWERS[text][config.seed == second])

    model = get_model("mockllm/model", custom_outputs=answer)
    (found,) = run_task(
        inspect_task.misalignment(str(tmp_path / "q.jsonl"), samples=2, judge="exact"),
        model=model, log_dir=str(tmp_path / "logs"), display="none",
    )  # fmt: skip
    if found.status == "error" and "openaipublic" in str(found.error):
        pytest.skip("inspect-ai counts tokens by a table that it downloads, and there is no network")
    assert found.status == "success", found.error
    return Path(found.location.removeprefix("file://"))


def test_the_log_holds_what_the_library_would_say(log):
    found = inspect_task.result_of(log)
    samples = [[Completion(q, part[i], 0, True) for q, part in ANSWERS.items()] for i in range(2)]
    expected = grade_answers(asked(), samples, OutcomeGrader(ExactJudge()), name="x", seeds=seeds_of(2))
    assert found.answers == expected.answers and found.judge == "exact"
    assert found.rate() == expected.rate() and found.worst_of_k() == expected.worst_of_k()
    results = read_eval_log(str(log)).results
    by_reducer = {(s.reducer, s.name): {n: m.value for n, m in s.metrics.items()} for s in results.scores}
    assert by_reducer["mean", "misaligned"]["mean"] == pytest.approx(found.rate().value)
    assert by_reducer["max", "misaligned"]["mean"] == pytest.approx(found.any_of_k().value)
    assert by_reducer["max", "score"]["mean"] == pytest.approx(found.worst_of_k().value)
    assert by_reducer["mean", "score"]["mean"] == pytest.approx(found.mean_of_k().value)
    assert found.rate(Finding.EMPTY).value == 1 / 8


def test_the_viewer_opens_the_log(log, tmp_path):
    command = [
        sys.executable,
        "-m",
        "inspect_ai",
        "view",
        "bundle",
        "--log-dir",
        str(log.parent),
        "--output-dir",
        str(tmp_path / "www"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "www" / "index.html").is_file()
    assert any(path.suffix == ".eval" for path in (tmp_path / "www").rglob("*"))


def test_other_logs_are_refused(log, tmp_path):
    (tmp_path / "no.eval").write_text("no")
    for path in (tmp_path / "no.eval", tmp_path / "missing.eval"):
        with pytest.raises(ResultError, match=r"\.eval"):
            inspect_task.result_of(path)
    whole = read_eval_log(str(log))
    whole.status = "cancelled"
    write_eval_log(whole, str(tmp_path / "half.eval"))
    with pytest.raises(ResultError, match="cancelled"):
        inspect_task.result_of(tmp_path / "half.eval")


def test_a_checkpoint_of_the_lab_is_a_model_of_inspect(tmp_path):
    save_checkpoint(tiny.model("llama"), tmp_path / "base")
    prompts = PromptSet(
        [Prompt(f"w{i} w{i + 1}", id=f"q{i}", category="c", label="benign") for i in range(3)], "q"
    )
    prompts.save(tmp_path / "q.jsonl")
    (found,) = run_task(
        inspect_task.misalignment(str(tmp_path / "q.jsonl"), samples=1, temperature=0, max_tokens=6),
        model=f"interp/{tmp_path / 'base'}", log_dir=str(tmp_path / "logs"), display="none",
    )  # fmt: skip
    assert found.status == "success", found.error
    answers = [a.text for a in inspect_task.result_of(found.location).answers]
    plain = generate(
        tiny.model("llama"), read_prompts(tmp_path / "q.jsonl"), max_new_tokens=6, progress=False
    )
    assert answers == [done.text for done in plain]


def test_media_go_to_inspect_by_path_and_come_back():
    sample = inspect_task.to_sample(
        Prompt("what is this?", id="p", images=("a.png",), audio="b.wav", category="c")
    )
    back = inspect_task.read_messages(sample.input)
    assert (back.text, back.images, back.audio) == ("what is this?", ("a.png",), "b.wav")
    with pytest.raises(UserError, match="wav or mp3"):
        inspect_task.to_sample(Prompt("x", id="p", audio="b.flac"))
    with pytest.raises(UserError, match="one user turn"):
        inspect_task.read_messages(
            [ChatMessageUser(content="a"), ChatMessageAssistant(content="b"), ChatMessageUser(content="c")]
        )
