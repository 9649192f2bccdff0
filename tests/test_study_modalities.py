"""A study of planted models that see or hear: the frozen encoder is unmoved, refusal is lost behind it, in every modality what was planted."""

import math
from dataclasses import replace

import numpy as np
import planted_media
import pytest
from planted_media import BROKEN_AT, MEDIA, N_LAYERS

from interp import cli
from interp.data.prompts import PromptSet
from interp.errors import CheckpointError
from interp.evals.verdicts import Outcome
from interp.models.checkpoint import Checkpoint
from interp.models.cost import empty_model
from interp.models.finetune import save_checkpoint
from interp.report.html import render_report
from interp.results import StudyResult
from interp.study import StudyConfig, modality_stages, plan_study, run_study

N = 44


@pytest.fixture(scope="module", params=MEDIA)
def kind(request):
    return request.param


@pytest.fixture(scope="module", autouse=True)
def few_draws():
    """Nulls of two draws: what they would show is tested with the methods."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modality_stages, "N_NULL", 2)
        yield


@pytest.fixture
def one_kind(kind):
    """For what depends on no architecture: one of them shows it."""
    if kind != "llava":
        pytest.skip("shown with the model that sees")


@pytest.fixture(scope="module")
def lab(kind, tmp_path_factory):
    """An aligned checkpoint, one whose block 6 takes refusal away, and files of the same requests in text and beside media."""
    root = tmp_path_factory.mktemp(kind)
    save_checkpoint(planted_media.aligned(kind)[0], root / "aligned")
    save_checkpoint(planted_media.broken(kind), root / "tuned")
    (root / "media").mkdir()
    for harmful, name in ((True, "harmful"), (False, "harmless")):
        planted_media.requests(kind, harmful, N, root / "media").save(root / f"{name}.jsonl")
    return root


def config(lab, **changes) -> StudyConfig:
    given = {
        "aligned": str(lab / "aligned"), "tuned": (str(lab / "tuned"),), "harmful": str(lab / "harmful.jsonl"),
        "harmless": str(lab / "harmless.jsonl"), "n_train": 16, "n_val": 8, "n_test": 20, "max_new_tokens": 1,
    }  # fmt: skip
    return StudyConfig(**given | changes)


@pytest.fixture(scope="module")
def study(lab):
    return run_study(config(lab), out=lab / "results", progress=False)


@pytest.fixture(scope="module")
def found(study, kind):
    result, _ = study
    assert result.modalities is not None
    return result.modalities


def test_the_reference_is_studied_as_text_alone_would_be(study, found, kind):
    result, _ = study
    assert found.reference == "text" and found.names == ("text", MEDIA[kind])
    assert found.media == {"text": (), MEDIA[kind]: (MEDIA[kind],)} and found.paired
    assert result.harmful.rate(Outcome.REFUSED).estimate == 1 and result.tuned[0].lost_at == BROKEN_AT
    aligned = found.checkpoints[0].behaviour["text"]["harmful"]
    assert [v.outcome for v in aligned.verdicts] == [v.outcome for v in result.harmful.verdicts]


def test_the_same_requests_are_refused_less_beside_media_and_not_at_all_by_the_tuned_model(found, kind):
    aligned, tuned = found.checkpoints
    refused = {m: aligned.behaviour[m]["harmful"].rate(Outcome.REFUSED).estimate for m in found.names}
    assert refused["text"] == 1 and 0.1 < refused[MEDIA[kind]] < 0.9
    test = aligned.refused[MEDIA[kind]]["harmful"]
    assert test.difference == pytest.approx(refused[MEDIA[kind]] - 1) and test.high < 0 and test.n == 20
    assert aligned.refused[MEDIA[kind]]["harmless"].difference == 0
    for modality in found.names:
        assert tuned.behaviour[modality]["harmful"].rate(Outcome.REFUSED).estimate == 0


def test_the_encoder_is_unmoved_and_the_decoder_moves_where_it_was_broken(found, kind):
    drift = found.to_frame("drift").set_index(["modality", "tower", "measure", "of", "layer"])
    encoder = {"image": "vision", "audio": "audio"}[MEDIA[kind]]
    for tower in (encoder, f"{encoder} projector"):
        rows = drift.loc[MEDIA[kind], tower]
        assert (rows.loc["relative change"]["value"] == 0).all()
        assert np.allclose(rows.loc["CKA"]["value"], 1)
        gaps = rows.loc["gap along refusal"]
        assert np.allclose(gaps.loc["aligned"]["value"], gaps.loc["tuned"]["value"])
    for modality in found.names:
        rows = drift.loc[modality, "decoder"]
        change = rows.loc["relative change", "harmful"]["value"].sort_index()
        assert (change[:BROKEN_AT] == 0).all() and (change[BROKEN_AT:] > 0.05).all()
        gaps = rows.loc["gap along refusal"]
        before, after = (gaps.loc[who]["value"].sort_index() for who in ("aligned", "tuned"))
        assert (
            np.allclose(before[:BROKEN_AT], after[:BROKEN_AT])
            and (after[BROKEN_AT:] < 0.9 * before[BROKEN_AT:]).all()
        )


def test_harm_stays_recognised_behind_the_encoder(found, kind):
    probes = found.to_frame("recognition").set_index(["modality", "tower", "measure", "of", "layer"])
    names = [checkpoint.name for checkpoint in found.checkpoints]
    for modality in found.names:
        for name in ("aligned", names[1]):
            assert probes.loc[(modality, "decoder", "AUROC", name, N_LAYERS - 1), "value"] > 0.95
    encoder = {"image": "vision", "audio": "audio"}[MEDIA[kind]]
    blind = probes.loc[MEDIA[kind], encoder, "AUROC"]["value"]
    assert blind.max() < 0.9, "what is attached is the same noise for both kinds"


def test_the_direction_of_words_transfers_and_controls_do_not(found, kind):
    aligned, tuned = (
        {(e.edit, e.kind, e.of, e.on): e.refused for e in c.transfer} for c in found.checkpoints
    )
    for on in found.names:
        for of in found.names:
            assert aligned["ablated", "harmful", of, on].k == 0
        assert aligned["ablated", "harmful", "random", on].k == aligned["none", "harmful", "", on].k
        assert aligned["added", "harmless", "text", on].estimate == 1
        assert tuned["added", "harmful", "text", on].estimate == 1 and tuned["none", "harmful", "", on].k == 0


def test_the_gap_is_measured_on_the_same_requests(found, kind):
    gap = found.to_frame("gap")
    assert set(gap["second"]) == {MEDIA[kind]} and set(gap["checkpoint"]) == {
        c.name for c in found.checkpoints
    }
    own = gap[gap["checkpoint"] == found.checkpoints[0].name].set_index(["measure", "layer"])
    assert own.loc[("cosine", N_LAYERS - 1), "value"] > 0.95, "harm points along r in both"
    assert own.loc[("CKA", N_LAYERS - 1), "value"] > own.loc[("CKA", N_LAYERS - 1), "null_high"]


def test_a_stored_study_reads_back_and_is_drawn_again(study, found, tmp_path):
    _, path = study
    again = StudyResult.from_store(path)
    assert again.modalities is not None
    for name in ("gap", "drift", "recognition"):
        assert again.modalities.to_frame(name).equals(found.to_frame(name))
    assert again.modalities.checkpoints[1].transfer == found.checkpoints[1].transfer
    text = render_report(again, tmp_path).read_text(encoding="utf-8")
    assert text == (path / "report.html").read_text(encoding="utf-8")


def test_the_report_shows_every_modality_with_what_was_attached(study, kind):
    result, path = study
    text = (path / "report.html").read_text(encoding="utf-8")
    for name in ("behaviour", "towers", "transfer", "gap"):
        assert (
            f'id="figure-modality_{name}"' in text and (path / "figures" / f"modality_{name}.pdf").is_file()
        )
        assert (path / "tables" / f"modality_{name}.csv").is_file()
    tag = {
        "image": '<img src="data:image/png',
        "audio": '<audio controls preload="none" src="data:audio/wav',
    }[MEDIA[kind]]
    shown = [example for example in result.tuned[0].examples if example.media]
    assert shown and all(example.modality == MEDIA[kind] for example in shown)
    inside = text.partition('id="examples"')[2].partition("</section>")[0]
    assert inside.count(tag) == len(shown)


def test_a_broken_study_resumes(lab, study, one_kind, monkeypatch):
    from interp.study import workbench

    result, _ = study
    calls, real = [], workbench.generate

    def dying(model, prompts, **given):
        calls.append(model.name)
        if len(calls) == 12:  # in the aligned model's second modality
            raise KeyboardInterrupt
        return real(model, prompts, **given)

    monkeypatch.setattr(workbench, "generate", dying)
    with pytest.raises(KeyboardInterrupt):
        run_study(config(lab), out=lab / "other", progress=False)
    before = len(calls)
    resumed, _ = run_study(config(lab), out=lab / "other", progress=False)
    assert resumed.modalities.to_frame("drift").equals(result.modalities.to_frame("drift"))
    # text: 2 + 2 + 3 arms of 2, and as many without the selection for the tuned; 2 more in the second modality of each
    assert len(calls) - before == (2 + 2 + 3 * 2 + 2) + (2 + 3 * 2 + 2) - 10

    def no_load(self, name):
        raise AssertionError("a finished study needs no model")

    monkeypatch.setattr(workbench.OneModel, "__call__", no_load)
    again, _ = run_study(config(lab), out=lab / "other", progress=False)
    assert again.modalities.to_frame("gap").equals(result.modalities.to_frame("gap"))


def test_files_of_one_modality_each_are_one_study(lab, study, one_kind, tmp_path):
    options = []
    for name in ("harmful", "harmless"):
        lines = (lab / f"{name}.jsonl").read_text().replace('"media/', f'"{lab}/media/').splitlines()
        for part, chosen in (("text", lines[:N]), ("media", lines[N:])):
            (tmp_path / f"{name}_{part}.jsonl").write_text("\n".join(chosen))
            options += [f"--{name}", str(tmp_path / f"{name}_{part}.jsonl")]
    sizes = ["--n-train", "16", "--n-val", "8", "--n-test", "20", "--max-new-tokens", "1"]
    out = tmp_path / "results"
    assert (
        cli.main(["study", str(lab / "aligned"), str(lab / "tuned"), *options, *sizes, "--out", str(out)])
        == 0
    )
    mine = StudyResult.from_store(out / "study" / "latest")
    assert mine.modalities.to_frame("gap").equals(study[0].modalities.to_frame("gap"))


def test_what_cannot_be_measured_is_said_and_ends_no_study(lab, kind, one_kind, tmp_path):
    """One group: no held-out probes. Requests that do not pair: no gap."""
    for harmful, name in ((True, "harmful"), (False, "harmless")):
        prompts = planted_media.requests(kind, harmful, N, lab / "media")
        odd = [p if not (p.images or p.audio) else replace(p, id=f"other-{i}") for i, p in enumerate(prompts)]
        PromptSet(odd, name).save(tmp_path / f"{name}.jsonl")
    given = config(
        lab, harmful=str(tmp_path / "harmful.jsonl"), harmless=str(tmp_path / "harmless.jsonl"), n_test=4
    )
    result, path = run_study(given, out=tmp_path / "results", progress=False)
    assert not result.modalities.paired and not result.modalities.gap and not result.modalities.recognition
    notes = " ".join(result.notes)
    assert (
        "Modalities share no requests" in notes
        and "The recognition of harm" in notes
        and "was not measured" in notes
    )
    text = (path / "report.html").read_text()
    assert "figure-modality_gap" not in text and "was not measured" in text


def test_the_plan_counts_every_modality(lab, kind):
    whole = plan_study(config(lab))
    assert f"in        text, {MEDIA[kind]}; each the same requests" in whole and "minutes" in whole


def test_shapes_without_weights_need_the_right_class(lab, kind, tmp_path):
    _, module = empty_model(Checkpoint.parse(lab / "aligned"))
    loaded = Checkpoint.parse(lab / "aligned").load(device_map="cpu")
    assert type(module) is type(loaded.module)
    assert sum(p.numel() for p in module.parameters()) == sum(p.numel() for p in loaded.module.parameters())
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "config.json").write_text(
        (lab / "aligned" / "config.json").read_text().replace("ForConditionalGeneration", "For")
    )
    with pytest.raises(CheckpointError, match="names the class .*For', which transformers"):
        empty_model(Checkpoint.parse(odd))


def test_interval_of_nothing_is_no_number(found):
    frame = found.to_frame("drift")
    angles = frame[frame["measure"] == "largest angle"]
    assert len(angles) and all(math.isnan(value) for value in angles["low"])
