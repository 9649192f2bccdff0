"""Prompts are told apart by what is attached to them, partners stay together, and what does not pair is named."""

import dataclasses

import pytest

from interp.data.modalities import modality_of, request_of, split_by_modality
from interp.data.prompts import Prompt, PromptSet, read_prompts
from interp.errors import UserError

SIZES = {"train": 6, "val": 2, "test": 4}


def rows(label: str, n: int = 12, modality: str = "text", *, suffix: str | None = None) -> list[Prompt]:
    media = {"image": {"images": ("x.png",)}, "audio": {"audio": "x.wav"}}.get(modality, {})
    suffix = f"-{modality}" if suffix is None else suffix
    return [Prompt(f"{label} {i}", id=f"{label}-{i}{suffix}", label=label, **media) for i in range(n)]


def both(*modalities: str) -> dict[str, PromptSet]:
    return {
        kind: PromptSet([p for m in modalities for p in rows(label, modality=m)], kind)
        for kind, label in (("harmful", "harmful"), ("harmless", "benign"))
    }


def test_a_modality_is_what_is_attached_unless_a_column_names_it():
    assert [modality_of(rows("harmful", 1, m)[0]) for m in ("text", "image", "audio")] == [
        "text",
        "image",
        "audio",
    ]
    assert modality_of(Prompt("x", images=("a.png",), audio="a.wav")) == "image and audio"
    assert modality_of(Prompt("x", images=("a.png",), meta={"modality": "drawn"})) == "drawn"
    with pytest.raises(UserError, match="prompt 'p': its `modality` is 3; give a name"):
        modality_of(Prompt("x", id="p", meta={"modality": 3}))


def test_partners_share_a_column_or_an_id_but_for_its_modality():
    assert request_of(Prompt("x", id="cut-bread-2-image", images=("a.png",))) == "cut-bread-2"
    assert request_of(Prompt("x", id="cut-bread-image-1", images=("a.png",))) == "cut-bread-1"
    assert request_of(Prompt("x", id="an-imageless-one", images=("a.png",))) == "an-imageless-one"
    assert request_of(Prompt("x", id="q", meta={"pair": 7})) == "7"


def test_text_alone_has_no_modalities():
    assert split_by_modality(both("text"), SIZES, 0) is None


@pytest.mark.parametrize("order", [("text", "image", "audio"), ("audio", "text", "image")])
def test_the_same_requests_go_into_the_same_part_in_the_same_order(order):
    found = split_by_modality(both(*order), SIZES, seed=3)
    assert found.paired and found.left_out == 0 and found.reference == "text"
    seen = []
    for part, prompts in found.parts["text"].items():
        keys = [request_of(p) for p in prompts]
        seen += keys
        for modality in ("image", "audio"):
            assert [request_of(p) for p in found.parts[modality][part]] == keys
            assert {modality_of(p) for p in found.parts[modality][part]} == {modality}
    assert len(seen) == len(set(seen)) == 24
    assert found.media("image") == ("image",) and found.media("text") == ()


def test_the_reference_is_split_as_it_would_be_alone():
    alone = PromptSet(rows("harmful", suffix=""), "harmful").split(SIZES, 3)
    found = split_by_modality(both("text", "image"), SIZES, 3).parts["text"]
    for part in SIZES:
        assert found[f"harmful_{part}"].texts == alone[part].texts


def test_requests_without_a_partner_are_left_out_and_counted():
    kinds = both("text", "image")
    kinds["harmful"] = PromptSet(kinds["harmful"].prompts[:-2], "harmful")
    found = split_by_modality(kinds, SIZES, 0)
    assert found.paired and found.left_out == 2
    assert sum(len(found.parts["text"][f"harmful_{part}"]) for part in SIZES) == 10


def test_modalities_without_a_shared_request_are_split_by_themselves():
    kinds = both("text", "image")
    for kind, prompts in kinds.items():
        other = [dataclasses.replace(p, id=f"other-{i}") if p.images else p for i, p in enumerate(prompts)]
        kinds[kind] = PromptSet(other, kind)
    found = split_by_modality(kinds, SIZES, 0)
    assert not found.paired and found.left_out == 0
    assert {len(part) for part in found.parts["image"].values()} == {6, 2, 4}


def test_what_does_not_fit_is_named():
    twice = both("text", "image")
    twice["harmful"] = PromptSet(
        [*twice["harmful"], Prompt("x", id="harmful-0-text-again", meta={"pair": "harmful-0"})]
    )
    with pytest.raises(
        UserError, match="'harmful-0-text' and 'harmful-0-text-again' ask the same .* own `pair`"
    ):
        split_by_modality(twice, SIZES, 0)
    control = [dataclasses.replace(p, meta={"modality": "random"}) for p in rows("harmful", modality="image")]
    with pytest.raises(UserError, match="'random' is the name of a control"):
        split_by_modality({"harmful": PromptSet([*rows("harmful"), *control])}, SIZES, 0)
    lacking = both("text", "image")
    lacking["harmless"] = both("text")["harmless"]
    with pytest.raises(UserError, match="no harmless prompt is of modality 'image'"):
        split_by_modality(lacking, SIZES, 0)


def test_columns_of_a_file_say_modality_and_pair(tmp_path):
    (tmp_path / "x.csv").write_text(
        "prompt,image,modality,pair\ncut the bread,,named,a\ncut this,bread.png,drawn,a\n"
    )
    named, drawn = read_prompts(tmp_path / "x.csv")
    assert (modality_of(named), modality_of(drawn)) == ("named", "drawn")
    assert request_of(named) == request_of(drawn) == "a"
