"""Figures, tables and the page of a study of several modalities: what was planted is shown, and names are text."""

import dataclasses
import re

import pytest
from modality_fixture import MODALITIES, multimodal_result
from study_fixture import N_LAYERS, study_result
from test_html import Outline

from interp.errors import ResultError
from interp.report.figures import FIGURES as TEXT_FIGURES
from interp.report.figures import draw
from interp.report.html import render_report
from interp.report.modality_figures import FIGURES, drawable
from interp.report.tables import csv_rows, shown, tables, to_latex
from interp.report.verdict import statements
from interp.results import StudyResult


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return render_report(multimodal_result(2, 4), tmp_path_factory.mktemp("report"))


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize(("n_tuned", "n_modalities"), [(1, 2), (2, 3), (3, 2), (6, 4)])
def test_figures_lie_on_their_page(name, n_tuned, n_modalities):
    figure = draw(multimodal_result(n_tuned, n_modalities), name)
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    inside = figure.bbox.padded(3)
    for panel in (axes for axes in figure.axes if axes.get_visible()):
        drawn = [tick.label1 for axis in (panel.xaxis, panel.yaxis) for tick in axis._update_ticks()]
        for text in (panel.xaxis.label, panel.yaxis.label, panel._left_title, *panel.texts, *drawn):
            if text.get_visible() and text.get_text().strip():
                box = text.get_window_extent(renderer)
                assert inside.x0 <= box.x0 and box.x1 <= inside.x1, text.get_text()
                assert inside.y0 <= box.y0 and box.y1 <= inside.y1, text.get_text()
    for legend in figure.legends:
        box = legend.get_window_extent(renderer)
        assert inside.x0 <= box.x0 and box.x1 <= inside.x1


def test_the_towers_stand_side_by_side_and_only_the_decoder_moves():
    figure = draw(multimodal_result(1, 2), "modality_towers")
    similarity, recognised, refused = (figure.axes[i] for i in (1, 3, 5))
    lines = [line for line in similarity.lines if len(line.get_xdata()) in (6, N_LAYERS)]
    encoder, decoder = lines
    assert (
        (encoder.get_ydata() == 1).all()
        and decoder.get_ydata()[-1] < 1
        and (decoder.get_ydata()[:7] == 1).all()
    )
    assert max(encoder.get_xdata()) < min(decoder.get_xdata())
    assert {text.get_text() for text in similarity.texts} == {"vision", "proj.", "decoder"}
    flat = [line for line in recognised.lines if len(line.get_xdata()) == N_LAYERS]
    assert all((line.get_ydata() == 0.9).all() for line in flat) and len(flat) == 2
    falling = [line for line in refused.lines if len(line.get_xdata()) == N_LAYERS]
    assert {round(float(line.get_ydata()[-1]), 3) for line in falling} == {
        3.0,
        round(3 - 8 * 0.4 * 5 / 12, 3),
    }
    assert "refused" in similarity.get_title(loc="left") and "→" in similarity.get_title(loc="left")


def test_what_was_not_measured_is_not_drawn(tmp_path):
    result = multimodal_result(1, 2)
    study = dataclasses.replace(result.modalities, gap=(), drift=(), recognition=())
    bare = dataclasses.replace(result, modalities=study)
    assert drawable(bare) == ["modality_behaviour", "modality_transfer"]
    for name in ("modality_gap", "modality_towers"):
        with pytest.raises(ResultError, match="was measured"):
            draw(bare, name)
    assert "figure-modality_towers" not in render_report(bare, tmp_path).read_text(encoding="utf-8")
    assert drawable(study_result(1)) == []
    with pytest.raises(ResultError, match="no modalities"):
        draw(study_result(1), "modality_gap")


def test_tables_hold_the_numbers_and_can_be_written():
    made = tables(multimodal_result(2, 3))
    for name in ("modality_behaviour", "modality_transfer", "modality_gap", "modality_towers"):
        table = made[name]
        assert all(len(line) == len(table.header) for line in table.rows) and table.rows
        header, *lines = csv_rows(table)
        assert all(len(line) == len(header) for line in lines)
        assert to_latex(table).count(r"\\") == len(table.rows) + 1
    first = made["modality_behaviour"].rows[1]
    assert first[1] == "image" and first[4].k == 4 and first[5].interval.value == pytest.approx(-0.1)
    assert made["modality_gap"].rows[0][3].value == 1.0
    moved = next(r for r in made["modality_towers"].rows if r[2] == "decoder.11")
    assert shown(moved[4]).startswith("0.833") and "modality_gap" not in tables(study_result(1))


def test_the_verdict_names_every_modality():
    reference, first, *_ = statements(multimodal_result(1, 3))
    text = " ".join(reference.sentences).replace("\u00a0", " ")
    assert "Of image prompts it refuses" in text and "Of audio prompts it refuses" in text
    assert "against the same as text" in text and "points" in text
    assert any("Of image prompts" in sentence for sentence in first.sentences)


def test_names_of_files_modalities_and_checkpoints_are_text(page):
    text = page.read_text(encoding="utf-8")
    outline = Outline(text)
    tags = [tag for tag, _ in outline.tags]
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(tags)
    for tag, attributes in outline.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        if value := attributes.get("src"):
            assert re.fullmatch(r"data:(image/png|audio/wav);base64,[A-Za-z0-9+/=]+", value)
    assert "&lt;script&gt;alert(&#39;$x_1$&#39;)&lt;/script&gt;" in text
    assert tags.count("audio") == sum(len(t.examples) for t in multimodal_result(2, 4).tuned) > 0
    policy = next(a["content"] for t, a in outline.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "media-src data:" in policy and policy.startswith("default-src 'none'")
    anchors = {a["href"][1:] for t, a in outline.tags if t == "a"}
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert "modalities" in anchors <= set(ids) and len(ids) == len(set(ids))


def test_a_study_of_text_has_no_such_section(tmp_path):
    page = render_report(study_result(1), tmp_path).read_text(encoding="utf-8")
    assert "modalities" not in page and "<audio" not in page
    assert not set(TEXT_FIGURES) & set(FIGURES)


def test_it_is_stored_and_read_back_without_loss(tmp_path):
    result = multimodal_result(2, 4)
    result.to_store(tmp_path)
    again = StudyResult.from_store(tmp_path)
    assert again.modalities is not None and result.modalities is not None
    assert again.modalities.names == MODALITIES
    for name in ("gap", "drift", "recognition"):
        assert again.modalities.to_frame(name).equals(result.modalities.to_frame(name))
    assert again.modalities.checkpoints == result.modalities.checkpoints or all(
        a.transfer == b.transfer and a.refused == b.refused
        for a, b in zip(again.modalities.checkpoints, result.modalities.checkpoints, strict=True)
    )
    assert again.tuned[0].examples == result.tuned[0].examples


def test_a_page_that_was_tampered_with_is_refused(tmp_path):
    multimodal_result(1, 2).to_store(tmp_path)
    stored = (tmp_path / "study.json").read_text()
    (tmp_path / "study.json").write_text(stored.replace("data:image/png;base64,", "https://example.org/?"))
    with pytest.raises(Exception, match="preview|no readable study result"):
        StudyResult.from_store(tmp_path)
