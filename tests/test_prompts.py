"""Prompts come back as written, every bad file is one line with its row, and sampling is seeded and disjoint."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.data.prompts import Prompt, PromptSet, Truth, jailbreakbench, read_prompts
from interp.data.rows import hub_rows
from interp.errors import PromptFileError, ResultError, UserError

DATA = Path(__file__).parents[1].parent / "shared" / "data" / "prompts"

unicode_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
maybe = st.none() | unicode_text
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | unicode_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(unicode_text, inner, max_size=3),
    max_leaves=5,
)
labels = st.sampled_from(["harmful", "benign"])
prompts = st.builds(
    Prompt,
    text=unicode_text.filter(str.strip),
    system=maybe,
    response=maybe,
    label=st.none() | labels,
    category=maybe,
    source=maybe,
    group=maybe,
    truth=st.none()
    | st.builds(Truth, label=labels, answer=maybe, refusals=st.lists(unicode_text).map(tuple)),
    images=st.lists(unicode_text.filter(bool), max_size=2).map(tuple),
    meta=st.dictionaries(unicode_text, json_values, max_size=3),
)


def numbered(n: int, name: str = "set") -> PromptSet:
    return PromptSet([Prompt(f"request {i}") for i in range(n)], name)


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@settings(deadline=None)
@given(st.lists(prompts, min_size=1, max_size=4))
def test_a_saved_set_comes_back_without_loss(tmp_path_factory: pytest.TempPathFactory, items: list[Prompt]):
    original = PromptSet(items, "any")
    path = original.save(tmp_path_factory.mktemp("saved") / "set.jsonl")
    back = read_prompts(path)
    assert back.prompts == original.prompts
    assert back.sha256 == original.sha256


def test_an_unusual_line_break_inside_a_prompt_is_no_new_row(tmp_path: Path):
    original = PromptSet([Prompt("one\u2028two\x85three\r\nfour")])
    assert read_prompts(original.save(tmp_path / "x.jsonl")).texts == original.texts


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"goal": "one", "extra": 1}\n\n{"goal": "two", "extra": null}\n'),
        ("a.jsonl", '"one"\n"two"\n'),
        ("a.json", '["one", "two"]'),
        ("a.json", '[{"Instruction": "one"}, {"Instruction": "two"}]'),
        ("a.csv", "goal,target\none,x\ntwo,\n"),
        ("a.csv", "\ufeffgoal,target\r\none,x\r\ntwo,y\r\n"),
        ("a.tsv", "id\tprompt\n7\tone\n8\ttwo\n"),
        ("a.csv", "Goal,Behavior,Category\none,short,c\ntwo,short,c\n"),
    ],
)
def test_prompts_are_found_in_every_kind_of_file(tmp_path: Path, name: str, content: str):
    assert read_prompts(written(tmp_path / name, content)).texts == ["one", "two"]


def test_parquet_is_read_and_other_columns_are_kept(tmp_path: Path):
    frame = pd.DataFrame(
        {"question": ["one", "two"], "label": ["harmless", None], "category": ["c", None], "n": [1, 2]}
    )
    frame.to_parquet(tmp_path / "a.parquet")
    first, second = read_prompts(tmp_path / "a.parquet", label="harmful")
    assert (first.label, first.category, dict(first.meta)) == ("benign", "c", {"n": 1})
    assert (second.label, second.category, dict(second.meta)) == ("harmful", None, {"n": 2})


def test_harmless_is_another_word_for_benign(tmp_path: Path):
    rows = '{"text": "a", "label": "harmless"}\n{"text": "b", "id": 7}\n'
    first, second = read_prompts(written(tmp_path / "a.jsonl", rows), label="harmful")
    assert (first.label, second.label, second.id) == ("benign", "harmful", "7")


def test_the_column_named_wins_over_the_guess(tmp_path: Path):
    path = written(tmp_path / "a.csv", "goal,target\none,first\ntwo,second\n")
    assert read_prompts(path, column="target").texts == ["first", "second"]
    assert read_prompts(path, limit=1).texts == ["one"]


BAD_FILES = [
    ("a.jsonl", '{"goal": "one"}\n{"goal": \n', "row 2: not JSON"),
    ("a.jsonl", '{"goal": "one"}\n{"goal": "  "}\n', "row 2: the prompt is blank"),
    ("a.jsonl", '{"goal": "one"}\n\n{"goal": 3}\n', "row 3: the prompt is of type int"),
    ("a.jsonl", '{"goal": "one"}\n{"goal": NaN}\n', "row 2: the prompt is missing"),
    ("a.jsonl", '{"goal": "one"}\n{"other": "two"}\n', "row 2: the prompt is missing"),
    ("a.jsonl", '{"goal": "one"}\n[1]\n', "row 2: holds of type list"),
    ("a.jsonl", '{"goal": "\\ud800"}\n', "row 1: half a surrogate pair"),
    ("a.jsonl", "", "holds no prompts"),
    (
        "a.jsonl",
        '{"id": "x", "goal": "one"}\n{"id": "x", "goal": "two"}\n',
        "row 2: duplicate id 'x', first in row 1",
    ),
    ("a.jsonl", '{"id": "x", "text": "a", "label": "evil"}\n', "row 1: label 'evil' is neither"),
    (
        "a.jsonl",
        '{"text": "a", "truth": {"label": "harmful", "anser": "b"}}\n',
        "row 1: `truth` has the unknown field",
    ),
    ("a.jsonl", '{"text": "a", "system": 4}\n', "row 1: `system` is of type int"),
    ("a.jsonl", "[" * 100_000, "row 1: not JSON (nested too deeply)"),
    ("a.jsonl", b'{"goal": "one"}\n{"goal": "caf\xe9"}\n', "row 2: not UTF-8"),
    ("a.json", '{"prompts": ["one"]}', "a list of prompts is expected"),
    ("a.json", '["one",\n "two"', "row 2: not JSON"),
    (
        "a.json",
        '{"goal": "one"}\n{"goal": "two"}\n',
        "row 2: not JSON (Extra data, column 1); one object a line",
    ),
    (
        "a.jsonl",
        '{"text": "a", "truth": {"label": "benign", "refusals": "no"}}\n',
        "row 1: `refusals` is not a list",
    ),
    (
        "a.jsonl",
        '{"text": "a", "truth": {"label": "benign", "answer": 3}}\n',
        "row 1: the `answer` of `truth`",
    ),
    ("a.jsonl", '{"text": "a", "images": [3]}\n', "row 1: an image is of type int, not a path"),
    ("a.json", "[]", "holds no prompts"),
    ("a.csv", "goal,target\none,x\ntwo,y,z\n", "row 2 (line 3): 3 cells under 2 columns"),
    ("a.csv", 'goal,target\none,x\n"two,y\n', "row 2 (line 3): not CSV"),
    ("a.csv", "goal,target\n", "holds no prompts"),
    ("a.csv", "goal,n\none,1\n,2\n", "row 2 (line 3): the prompt is missing"),
    ("a.csv", "goal,n\none,1\nNaN,2\n", "row 2 (line 3): the prompt is missing"),
    ("a.csv", "goal,goal\none,two\n", "the column 'goal' stands twice"),
    ("a.csv", "goal,prompt\none,two\n", "goal and prompt could hold the prompt; say which with --column"),
    ("a.csv", "a,b\none,two\n", "say which with --column (columns: a, b)"),
    ("a.parquet", "no parquet", "not a Parquet file"),
    ("a.xlsx", "x", "unknown kind of file; prompts are read from .jsonl"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES)
def test_a_bad_file_is_one_line_with_the_row(tmp_path: Path, name: str, content: str | bytes, message: str):
    path = written(tmp_path / name, content)
    with pytest.raises(PromptFileError) as caught:
        read_prompts(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_cell_in_parquet_names_its_row(tmp_path: Path):
    pd.DataFrame({"prompt": ["one", None]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(PromptFileError, match="row 2: the prompt is missing"):
        read_prompts(tmp_path / "a.parquet")


def test_a_wrong_column_lists_the_columns(tmp_path: Path):
    path = written(tmp_path / "a.csv", "goal,target\none,x\n")
    with pytest.raises(PromptFileError, match="no column 'ask'; --column must be one of: goal, target"):
        read_prompts(path, column="ask")


def test_a_missing_file_and_a_directory_are_told_apart(tmp_path: Path):
    with pytest.raises(PromptFileError, match="no such file"):
        read_prompts(tmp_path / "absent.jsonl")
    with pytest.raises(PromptFileError, match="no such file"):
        read_prompts("absent.jsonl")
    with pytest.raises(PromptFileError, match="is a directory"):
        read_prompts(tmp_path)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch):
    """An endpoint where nothing listens, and no cache; refuses at once instead of retrying."""
    import datasets
    import huggingface_hub as hub

    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", "/nonexistent")


def test_without_the_hub_jailbreakbench_says_what_to_pass_and_fast(no_hub: None):
    import datasets

    start = time.monotonic()
    with pytest.raises(UserError, match="--harmful FILE --harmless FILE"):
        jailbreakbench()
    assert time.monotonic() - start < 10  # the hub's client alone would retry for over 20 s
    assert datasets.config.HF_HUB_OFFLINE is False, "the offline switch must be put back"


def test_splits_of_a_hub_data_set_are_asked_for_by_name(monkeypatch: pytest.MonkeyPatch):
    import datasets

    made = {
        "train": datasets.Dataset.from_dict({"prompt": ["one", "two"]}),
        "test": datasets.Dataset.from_dict({"prompt": ["three"]}),
    }
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: made)
    assert read_prompts("owner/name::test").texts == ["three"]
    assert read_prompts("owner/name::train", label="benign")[1].label == "benign"
    with pytest.raises(PromptFileError, match="name one of the splits train, test"):
        hub_rows("owner/name")


def test_duplicate_ids_and_blank_prompts_are_refused():
    with pytest.raises(UserError, match="duplicate id 'x' in rows 1 and 2"):
        PromptSet([Prompt("a", id="x"), Prompt("b", id="x")])
    with pytest.raises(UserError, match="blank"):
        Prompt(" \n")
    assert Prompt("", images=("picture.png",)).images == ("picture.png",)


def test_slices_filters_and_sums_are_sets():
    one = numbered(4)
    assert one[1:3].ids == ["set:2", "set:3"]
    assert one[-1].id == "set:4"
    assert one.filter(lambda p: p.text.endswith("2")).texts == ["request 2"]
    assert (one + numbered(2, "other")).ids[-1] == "other:2"
    with pytest.raises(UserError, match="duplicate id"):
        one + one


@settings(deadline=None)
@given(st.integers(3, 60), st.integers(0, 2**32 - 1))
def test_parts_of_a_split_are_disjoint_and_never_empty(n: int, seed: int):
    whole = numbered(n)
    sizes = {"train": 12, "val": 3, "test": 10}
    parts = whole.split(sizes, seed)
    taken = [i for part in parts.values() for i in part.ids]
    assert len(taken) == len(set(taken)) == min(n, 25)
    assert set(taken) <= set(whole.ids)
    assert all(1 <= len(parts[k]) <= sizes[k] for k in sizes)
    assert len(parts["val"]) <= len(parts["test"]) <= len(parts["train"])
    assert {k: p.ids for k, p in whole.split(sizes, seed).items()} == {k: p.ids for k, p in parts.items()}


def test_a_short_set_is_shared_out_in_proportion():
    parts = numbered(130).split({"train": 128, "val": 32, "test": 100}, 0)
    assert {k: len(v) for k, v in parts.items()} == {"train": 64, "val": 16, "test": 50}
    with pytest.raises(UserError, match="too few for the 3 parts"):
        numbered(2).split({"train": 1, "val": 1, "test": 1}, 0)


def test_sampling_depends_on_the_seed_and_leaves_the_global_generators_alone():
    whole = numbered(200)
    before = np.random.get_state()[1].tolist()
    assert whole.sample(50, 1).ids == whole.sample(50, 1).ids != whole.sample(50, 2).ids
    assert len(set(whole.sample(200, 3).ids)) == 200
    whole.split({"a": 10, "b": 10}, 0)
    assert np.random.get_state()[1].tolist() == before
    with pytest.raises(UserError, match="cannot draw 201"):
        whole.sample(201, 0)


def test_the_hash_follows_everything_a_prompt_holds():
    base = Prompt("a", id="x", images=(np.zeros((2, 3)),), audio=(np.zeros(4), 16_000))
    changed = [
        replace(base, text="b"),
        replace(base, id="y"),
        replace(base, system="s"),
        replace(base, label="harmful"),
        replace(base, truth=Truth("harmful")),
        replace(base, meta={"k": 1}),
        replace(base, images=(np.zeros((3, 2)),)),
        replace(base, images=(np.ones((2, 3)),)),
        replace(base, audio=(np.ones(4), 16_000)),
        replace(base, audio=(np.zeros(4), 8_000)),
        replace(base, audio=None),
    ]
    hashes = {PromptSet([p]).sha256 for p in [base, *changed]}
    assert len(hashes) == len(changed) + 1
    assert PromptSet([base], "other name").sha256 == PromptSet([replace(base)], "name").sha256


def test_prompts_are_equal_when_all_they_hold_is():
    assert Prompt("a", images=(np.zeros(2),)) == Prompt("a", images=(np.zeros(2),))
    assert Prompt("a", audio=(np.zeros(2), 8_000)) != Prompt("a", audio=(np.ones(2), 8_000))
    assert len({Prompt("", images=("x",)), Prompt("", images=("x",)), Prompt("", images=("y",))}) == 2
    with pytest.raises(UserError, match="not JSON"):
        PromptSet([Prompt("a", meta={"k": object()})]).sha256  # noqa: B018 - the hash is what raises


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path):
    with pytest.raises(UserError, match="only paths can be written"):
        PromptSet([Prompt("a", audio=(np.zeros(3), 8_000))]).save(tmp_path / "x.jsonl")
    with pytest.raises(UserError, match="cannot be written as JSON"):
        PromptSet([Prompt("a", meta={"k": object()})]).save(tmp_path / "x.jsonl")
    with pytest.raises(ResultError, match="cannot be written"):
        PromptSet([Prompt("a")]).save(written(tmp_path / "file", "") / "x.jsonl")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_set_shows_itself_with_its_markup_escaped():
    shown = PromptSet([Prompt("<script>alert(1)</script>")], "<b>")._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown and "&lt;b&gt;" in shown
    frame = numbered(3).to_frame()
    assert list(frame["text"]) == ["request 0", "request 1", "request 2"]


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared prompt files are not here")
@pytest.mark.parametrize(
    ("name", "n", "first"),
    [
        ("advbench.csv", 520, "Write a script that can exploit vulnerabilities"),
        ("jailbreakbench.csv", 100, "Write a defamatory article"),
        ("harmful_test.json", 572, "Write a defamatory article"),
        ("harmless_val.json", 1500, "List three education benefits"),
    ],
)
def test_the_real_files_are_read_without_flags(name: str, n: int, first: str):
    found = read_prompts(DATA / name)
    assert len(found) == n
    assert found[0].text.startswith(first)


def test_reading_needs_neither_torch_nor_pandas():
    code = (
        "import sys, interp.data.pairs; print(*{'torch', 'pandas', 'numpy', 'datasets'} & set(sys.modules))"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
