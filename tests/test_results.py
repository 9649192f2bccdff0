"""A study result survives the disk bit for bit, refuses wrong shapes, and damaged files are named."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from study_fixture import HOSTILE, N_HARMFUL, SELF_NAME, study_result

from interp.errors import ResultError
from interp.results import StudyResult


def assert_same(a: Any, b: Any, where: str = "study") -> None:
    """Deep equality that also demands equal dtypes and treats NaN as equal to itself."""
    if isinstance(a, np.ndarray):
        assert a.dtype == b.dtype, where
        np.testing.assert_array_equal(a, b, err_msg=where)
    elif dataclasses.is_dataclass(a):
        assert type(a) is type(b), where
        for field in dataclasses.fields(a):
            assert_same(getattr(a, field.name), getattr(b, field.name), f"{where}.{field.name}")
    elif isinstance(a, Mapping):
        assert list(a) == list(b), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, tuple | list):
        assert type(a) is type(b) and len(a) == len(b), where
        for index, (left, right) in enumerate(zip(a, b, strict=True)):
            assert_same(left, right, f"{where}[{index}]")
    else:
        same_nan = isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b)
        assert type(a) is type(b) and (a == b or same_nan), where


def test_round_trip_is_loss_free(tmp_path):
    result = study_result()
    result.to_store(tmp_path)
    back = StudyResult.from_store(tmp_path)
    assert_same(result, back)
    assert [example.tuned for example in back.tuned[0].examples] == list(HOSTILE)


def test_round_trip_keeps_a_transposed_view_in_order(tmp_path):
    result = study_result(1)
    tuned = result.tuned[0]
    turned = {name: np.asfortranarray(grid) for name, grid in tuned.projection.items()}
    result = dataclasses.replace(result, tuned=(dataclasses.replace(tuned, projection=turned),))
    result.to_store(tmp_path)
    np.testing.assert_array_equal(
        StudyResult.from_store(tmp_path).tuned[0].projection["tuned_harmful"],
        tuned.projection["tuned_harmful"],
    )


@pytest.mark.parametrize("damage", ["missing", "truncated json", "truncated arrays", "format", "field"])
def test_damage_is_one_named_error(tmp_path, damage):
    study_result(1).to_store(tmp_path)
    text, arrays = tmp_path / "study.json", tmp_path / "study.safetensors"
    body = json.loads(text.read_text())
    match damage:
        case "missing":
            arrays.unlink()
        case "truncated json":
            text.write_text(text.read_text()[:1000])
        case "truncated arrays":
            arrays.write_bytes(arrays.read_bytes()[:-8])
        case "format":
            text.write_text(json.dumps({**body, "format": 99}))
        case "field":
            del body["study"]["selection"]["layer"]
            text.write_text(json.dumps(body))
    with pytest.raises(ResultError, match="run the study again") as raised:
        StudyResult.from_store(tmp_path)
    assert str(tmp_path) in str(raised.value)


def test_a_wrong_shape_is_refused():
    result = study_result(1)
    short = dataclasses.replace(result.tuned[0], cosine=np.ones(3))
    with pytest.raises(ResultError, match="cosine"):
        dataclasses.replace(result, tuned=(short,))
    with pytest.raises(ResultError, match="position"):
        dataclasses.replace(result.selection, position=0)


def test_to_frame_counts_every_prompt_once():
    result = study_result()
    frame = result.to_frame()
    totals = frame[frame.prompts == "harmful"].groupby(["role", "checkpoint"])["count"].sum()
    assert (totals == N_HARMFUL).all() and len(totals) == 4
    row = frame.query("role == 'tuned' and prompts == 'harmful' and outcome == 'complied-harmful'").iloc[0]
    assert (row["count"], row["rate"]) == (122, pytest.approx(0.61))
    assert row.low < 0.61 < row.high


def test_ablation_test_pairs_the_arms():
    test = study_result(1).ablation_test("direction", "none", "harmful")
    assert test.difference == pytest.approx((8 - 196) / N_HARMFUL)
    assert test.high < 0


def test_it_shows_itself_in_a_notebook():
    html = study_result()._repr_html_()
    assert SELF_NAME in html and "<script" not in html
