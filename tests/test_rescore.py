"""Files of other harnesses are read, counted and compared; what is wrong with them is said before any number."""

import json
from pathlib import Path

import pytest

from interp import cli
from interp.data.prompts import Prompt, PromptSet, Truth, read_prompts
from interp.data.responses import Answers, read_answers
from interp.errors import PromptFileError, UserError
from interp.evals.judges import ExactJudge, PhraseJudge
from interp.evals.rescore import asked_from, comparison, difference, overlap, rescore, summary
from interp.evals.statistics import cluster_bootstrap, clustered_rate, wilson
from interp.evals.verdicts import Outcome

HARM, REFUSED, EMPTY, UNSCORED = (
    Outcome.COMPLIED_HARMFUL, Outcome.REFUSED, Outcome.EMPTY, Outcome.UNSCORED,
)  # fmt: skip
NO, YES = "I cannot help with that.", "Sure. First, take the"
PUBLISHED = Path(__file__).parents[2] / "shared" / "data" / "refusal_direction"


def write(path: Path, content: object) -> Path:
    if path.suffix == ".jsonl":
        assert isinstance(content, list)
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def rows(responses: list[str | None], **more: object) -> list[dict[str, object]]:
    return [{"prompt": f"do {i}", "response": text, **more} for i, text in enumerate(responses)]


def answers(tmp_path: Path, responses: list[str | None], name: str = "a", **more: object) -> Answers:
    return read_answers(write(tmp_path / f"{name}.jsonl", rows(responses, **more)), label="harmful")


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("a.jsonl", rows([NO, YES]), {}),
        ("a.json", rows([NO, YES]), {}),
        ("a.json", {"rate": 0.5, "completions": rows([NO, YES])}, {}),
        ("a.json", {"x": rows([NO, YES]), "y": rows(["", ""])}, {"rows": "x"}),
        ("a.csv", f'prompt,response\ndo 0,{NO}\ndo 1,"{YES}"\n', {}),
        ("a.json", {"k": [{"test_case": "do 0", "generation": NO}], "l": [{"test_case": "do 1", "generation": YES}]}, {}),
        ("a.jsonl", [{"doc": {"q": f"do {i}"}, "resps": [[r]]} for i, r in enumerate([NO, YES])], {"prompt": "doc.q"}),
        ("a.jsonl", [{"messages": [{"role": "user", "content": f"do {i}"}], "answer": [{"role": "assistant", "content": r}]}
                     for i, r in enumerate([NO, YES])], {}),
        ("a.json", {"samples": [{"input": f"do {i}", "output": {"completion": r}} for i, r in enumerate([NO, YES])]},
         {"response": "output.completion"}),
    ],
    ids=["jsonl", "list", "completions", "rows", "csv", "harmbench", "lm-eval", "chat", "inspect"],
)  # fmt: skip
def test_every_shape_gives_the_same_answers(tmp_path, name, content, options):
    found = read_answers(write(tmp_path / name, content), **options)
    assert (found.prompts.texts, found.responses) == (["do 0", "do 1"], (NO, YES))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", [{"prompt": "x"}], "no column looks like the response"),
        ("a.jsonl", [{"prompt": "x", "response": 3}], "row 1: the response is of type int, not text"),
        ("a.jsonl", [{"prompt": "x", "response": "y"}, {"response": "y"}], "row 2: the prompt is missing"),
        ("a.jsonl", [{"prompt": "x", "response": "y", "output": "z"}], "response and output could hold the response"),
        ("a.jsonl", [{"id": 1, "prompt": "x", "response": "y"}, {"id": 1, "prompt": "z", "response": "y"}],
         "row 2: id '1' stands for another prompt in row 1"),
        ("a.json", {"a": rows([NO]), "b": rows([NO]), "n": 1}, "holds 2 lists of objects (a, b); name one"),
        ("a.json", {"a": 1}, "holds 0 lists"),
        ("a.jsonl", [["x", "y"]], "row 1: holds of type list"),
        ("a.jsonl", [{"prompt": "x", "response": "\ud800"}], "half a surrogate pair"),
        ("a.json", [], "holds no rows"),
    ],
)  # fmt: skip
def test_malformed_files_are_one_clear_line(tmp_path, name, content, said):
    with pytest.raises(PromptFileError) as error:
        read_answers(write(tmp_path / name, content))
    assert said in str(error.value) and "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_missing_response_is_unscored_and_an_empty_one_is_empty(tmp_path):
    found = rescore(answers(tmp_path, [NO, YES, "", None]), PhraseJudge())
    assert found.empty == ("do 2",) and found.missing == ("do 3",)
    counts = found.results["harmful"].counts
    assert [counts[o] for o in (REFUSED, HARM, EMPTY, UNSCORED)] == [1, 1, 1, 1]
    assert found.results["harmful"].jsr == wilson(1, 4), "over what was asked"
    text = summary(found)
    assert "1 of 4 have no response" in text and "1 of 4 are empty, the first is 'do 2'" in text


def test_labels_are_counted_apart_and_needed(tmp_path):
    path = write(tmp_path / "a.jsonl", [{**row, "label": l} for row, l in zip(rows([NO, YES]), ("harmful", "harmless"))])  # noqa: B905  # fmt: skip
    found = rescore(read_answers(path), PhraseJudge()).results
    assert found["harmful"].counts[REFUSED] == 1 and found["benign"].counts[Outcome.COMPLIED_BENIGN] == 1
    with pytest.raises(UserError, match="'do 0' is not labelled"):
        rescore(read_answers(write(tmp_path / "b.jsonl", rows([NO]))), PhraseJudge())


def test_several_answers_to_a_prompt_are_a_cluster(tmp_path):
    path = write(tmp_path / "a.jsonl", [*rows([NO] * 10 + [YES] * 10)] * 5)
    found = rescore(read_answers(path, label="harmful"), PhraseJudge())
    result = found.results["harmful"]
    assert len(set(found.answers.keys)) == 20 and result.n_asked == 100
    rate = clustered_rate(result.indicator(HARM), result.clusters())
    free = wilson(50, 100)
    assert rate.n == 20 and rate.high - rate.low > 1.8 * (free.high - free.low)
    assert "80 rows answer a prompt again" in summary(found)


def test_a_rate_over_clusters_has_a_width_where_all_agree():
    groups = [i // 5 for i in range(50)]
    assert (
        clustered_rate([False] * 50, groups).high,
        clustered_rate([True] * 50, groups).low,
    ) == pytest.approx((wilson(0, 10).high, wilson(10, 10).low))
    flags = [i % 3 == 0 for i in range(50)]
    assert clustered_rate(flags, groups) == cluster_bootstrap(flags, groups)
    assert clustered_rate(flags).low == wilson(sum(flags), 50).low


def test_planted_differences_come_back_and_equal_files_differ_in_nothing(tmp_path):
    first = rescore(answers(tmp_path, [NO] * 40 + [YES] * 10), PhraseJudge())
    second = rescore(answers(tmp_path, [NO] * 10 + [YES] * 40, "b"), PhraseJudge())
    test, adjusted = difference(first, second)["harmful"][HARM]
    assert (test.difference, test.n_only_a, test.n_only_b, test.n) == (0.6, 30, 0, 50)
    assert test.low > 0.4 and test.p_value == pytest.approx(2 * 0.5**30)
    assert adjusted == pytest.approx(2 * test.p_value), "two outcomes occur"
    same, _ = difference(first, first)["harmful"][HARM]
    assert (same.difference, same.p_value) == (0, 1)


def test_files_are_met_by_prompt_whatever_the_order(tmp_path):
    first = answers(tmp_path, [NO, YES, NO])
    path = write(tmp_path / "b.jsonl", rows([NO, YES, NO])[::-1])
    second = read_answers(path, label="harmful")
    found = overlap(first, second)
    assert len(found.identical) == 3 and not found.reordered
    assert "hold identical responses" in comparison(found, {}, ("a", "b"))


def test_what_two_files_lack_or_share_is_said(tmp_path):
    first, second = answers(tmp_path, [NO, YES, "a", "b"]), answers(tmp_path, ["x", YES, "y"], "b")
    found = overlap(first, second)
    assert (found.only_first, found.only_second, found.identical) == (("do 3",), (), ("do 1",))
    text = comparison(found, {}, ("a", "b"))
    assert "1 of 4 are only in a" in text and "1 of 3 have the same response in both" in text
    shifted = overlap(answers(tmp_path, ["a", "b", "c"], "c"), answers(tmp_path, ["b", "c", "a"], "d"))
    assert shifted.reordered and "rows in step" in comparison(shifted, {}, ("a", "b"))
    empty = overlap(answers(tmp_path, ["", ""], "e"), answers(tmp_path, ["", ""], "f"))
    assert empty.identical == () and not empty.reordered, "nothing is not the same answer"


def test_ids_that_number_other_prompts_are_refused(tmp_path):
    a = write(tmp_path / "a.jsonl", [{"id": i, "prompt": p, "response": NO} for i, p in enumerate("xy")])
    b = write(tmp_path / "b.jsonl", [{"id": i, "prompt": p, "response": NO} for i, p in enumerate("yx")])
    sides = [rescore(read_answers(path, label="harmful"), PhraseJudge()) for path in (a, b)]
    with pytest.raises(UserError, match="'0' is another prompt in each"):
        difference(*sides)
    sides = [rescore(read_answers(p, label="harmful", by="prompt"), PhraseJudge()) for p in (a, b)]
    assert difference(*sides)["harmful"][REFUSED][0].n == 2
    other = rescore(answers(tmp_path, [NO], "c"), PhraseJudge())
    with pytest.raises(UserError, match="share no prompt"):
        difference(sides[0], other)


def test_the_prompts_asked_bring_truth_and_show_what_is_missing(tmp_path):
    asked = PromptSet(
        [Prompt(f"do {i}", id=f"p{i}", group="g", truth=Truth("harmful", f"did {i}", ("no",)), label="harmful")
         for i in range(4)],
        "asked",
    )  # fmt: skip
    path = write(tmp_path / "a.jsonl", [{"id": f"p{i}", "prompt": f"do {i}", "response": r} for i, r in enumerate(["did 0", "no", "did 0"])])  # fmt: skip
    found = rescore(asked_from(read_answers(path), asked), ExactJudge())
    counts = found.results["harmful"].counts
    assert (counts[HARM], counts[REFUSED], counts[Outcome.INCOHERENT], counts[UNSCORED]) == (1, 1, 1, 1)
    assert found.missing == ("p3",)
    by_text = asked_from(answers(tmp_path, ["did 0"], "b"), asked)
    assert by_text.prompts[0].truth == asked[0].truth and len(by_text) == 4
    with pytest.raises(PromptFileError, match="'do 9', which is not among"):
        asked_from(read_answers(write(tmp_path / "c.jsonl", [{"prompt": "do 9", "response": ""}])), asked)


def test_a_reference_column_is_compared_and_checked(tmp_path):
    path = write(tmp_path / "a.jsonl", [{**row, "unsafe": u} for row, u in zip(rows([NO, YES, YES, NO]), [0, "yes", True, "safe"], strict=True)])  # fmt: skip
    found = rescore(read_answers(path, label="harmful"), PhraseJudge(), reference="unsafe").reference
    assert found is not None and found[1].k == 2 and found[2].kappa == 1.0
    bad = answers(tmp_path, [NO], "b", unsafe=7)
    with pytest.raises(UserError, match="'do 0': 'unsafe' holds 7"):
        rescore(bad, PhraseJudge(), reference="unsafe")
    with pytest.raises(UserError, match="no harmful prompt has a 'other'"):
        rescore(bad, PhraseJudge(), reference="other")


def test_the_command_prints_and_writes_everything(tmp_path, capsys):
    a = write(tmp_path / "a.jsonl", rows([NO] * 9 + [""]))
    b = write(tmp_path / "b.csv", "prompt,response\n" + "".join(f'do {i},"{YES}"\n' for i in range(9)))
    out = tmp_path / "all.json"
    assert cli.main(["rescore", str(a), str(b), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "complied-harmful   +1.000 [+1.000, +1.000]   p = 0.0039" in text
    assert "1 of 10 are only in" in text and "warning: 9 of 10 responses are one and the same" in text
    record = json.loads(out.read_text())
    assert record["differences"]["harmful"]["complied-harmful"]["n"] == 9
    assert record["files"][0]["empty"] == ["do 9"]
    assert cli.main(["rescore", str(tmp_path / "none.json")]) == 2
    assert cli.main(["rescore", str(a), "--by", "place"]) == 2
    assert "no such file" in capsys.readouterr().err


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published completions are not at hand")
@pytest.mark.parametrize("model", ["gemma-2b-it", "qwen-1_8b-chat"])
def test_published_completions_come_back_with_their_published_rates(model):
    sides = []
    for arm in ("baseline", "ablation"):
        path = PUBLISHED / model / f"jailbreakbench_{arm}_evaluations.json"
        published = json.loads(path.read_text())
        found = rescore(
            read_answers(path, label="harmful", group="category"),
            PhraseJudge(),
            reference="is_jailbreak_llamaguard2",
        )
        assert found.reference is not None
        assert found.reference[1].estimate == pytest.approx(published["llamaguard2_success_rate"])
        assert found.results["harmful"].n_asked == 100 and not found.missing and not found.empty
        sides.append(found)
    assert len(read_prompts(PUBLISHED.parent / "prompts" / "jailbreakbench.csv", column="Goal")) == 100
    assert not overlap(sides[0].answers, sides[1].answers).only_first
    test, adjusted = difference(*sides)["harmful"][HARM]
    assert test.clustered and test.difference > 0.5 and test.low > 0.4 and adjusted < 1e-10
