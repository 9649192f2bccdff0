"""Figures show the planted numbers, nothing leaves the page or covers the data, and odd inputs stay readable."""

import dataclasses
import itertools
import warnings

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex
from study_fixture import EOI_TOKENS, LONG_NAME, LOST_AT, N_LAYERS, SELF_NAME, study_result

from interp.errors import ResultError
from interp.evals.verdicts import Outcome
from interp.report import style
from interp.report.captions import CAPTIONS
from interp.report.figures import FIGURES, draw
from interp.results import ARMS


def texts(figure):
    return [text for text in figure.findobj(mpl.text.Text) if text.get_text().strip() and text.get_visible()]


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("n_tuned", [1, 2, 3, 6])
def test_everything_lies_on_the_page_and_nothing_overlaps(name, n_tuned):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = draw(study_result(n_tuned), name)
        figure.canvas.draw()
    assert figure.get_size_inches()[0] in (style.SINGLE, style.DOUBLE)
    renderer = figure.canvas.get_renderer()
    page = figure.bbox.padded(1.5)
    axes = [a for a in figure.axes if a.get_visible()]
    for panel in axes:
        labels = [panel.xaxis.label, panel.yaxis.label, panel.title, panel._left_title, *panel.texts]
        for axis in (panel.xaxis, panel.yaxis):
            drawn = [tick.label1 for tick in axis._update_ticks()]
            ticks = [t for t in drawn if t.get_visible() and t.get_text()]
            boxes = [t.get_window_extent(renderer) for t in ticks]
            assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2)), (name, axis.axis_name)
            labels += ticks
        for label in labels:
            if label.get_visible() and label.get_text().strip():
                box = label.get_window_extent(renderer)
                inside = page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
                assert inside, (name, label.get_text())
    tight = [panel.get_tightbbox(renderer) for panel in axes]
    for a, b in itertools.combinations(tight, 2):
        overlap = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(overlap) <= 3, (name, overlap)
    for legend in figure.legends:
        box = legend.get_window_extent(renderer)
        assert page.x0 <= box.x0 and box.x1 <= page.x1
        assert not any(box.overlaps(other) for other in tight), name


@pytest.mark.parametrize("name", FIGURES)
def test_outer_axes_are_labelled(name):
    figure = draw(study_result(3), name)
    assert any(a.get_xlabel() for a in figure.axes)
    assert any(a.get_ylabel() for a in figure.axes) or name == "behaviour"
    assert name in CAPTIONS and CAPTIONS[name].text(study_result(3))


def test_behaviour_shows_the_planted_rates():
    figure = draw(study_result(3), "behaviour")
    orange = style.OUTCOMES["complied-harmful"][1]
    widths = [
        bar.get_width() for bar in figure.axes[0].patches if to_hex(bar.get_facecolor()).upper() == orange
    ]
    assert widths == pytest.approx([2, 61, 15, 2])
    assert "61 % [54, 67]" in {t.get_text().replace(style.NBSP, " ") for t in texts(figure)}


def test_layers_mark_where_it_was_lost():
    top, *_, last = draw(study_result(3), "layers").axes
    verticals = [line.get_xdata()[0] for line in top.lines if line.get_linestyle() == ":"]
    assert verticals == [LOST_AT]
    assert not [line for line in last.lines if line.get_linestyle() == ":"]


def test_directions_outline_the_selected_cell_and_hatch_the_dropped():
    result = study_result(1)
    figure = draw(result, "directions")
    panel = figure.axes[0]
    dropped = sum(bool(reason) for row in result.selection.filtered for reason in row)
    assert sum(patch.get_hatch() is not None for patch in panel.patches) == dropped
    outline = [patch for patch in panel.patches if patch.get_linewidth() > 1]
    assert {patch.get_xy() for patch in outline} == {(5.5, len(EOI_TOKENS) - 2 - 0.5)}
    assert panel.get_ylim()[0] > panel.get_ylim()[1], "the earliest token comes first"


def test_causal_bars_are_the_rates():
    figure = draw(study_result(1), "causal")
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights[:4] == pytest.approx([98, 4, 98, 95.5])
    result = study_result(1)
    answered = [result.ablation[arm]["harmful"].rate(Outcome.COMPLIED_HARMFUL).estimate for arm in ARMS]
    assert heights[4:8] == pytest.approx([100 * share for share in answered])
    diamonds = [line.get_ydata()[0] for line in figure.axes[1].lines if line.get_marker() == "D"]
    overdone = [result.tuned[0].addition_harmless[arm].rate(Outcome.REFUSED).estimate for arm in ARMS]
    assert diamonds == pytest.approx([100 * share for share in overdone])


def test_prompts_count_the_lost():
    titles = " ".join(t.get_text() for t in texts(draw(study_result(3), "prompts")))
    assert "lost: 118 of 196" in titles and "lost: 0 of 196" in titles


def test_nothing_computed_is_still_drawn():
    result = study_result(1)
    nothing = {name: np.full_like(grid, np.nan) for name, grid in result.selection.scores.items()}
    selection = dataclasses.replace(result.selection, scores=nothing)
    tuned = dataclasses.replace(result.tuned[0], cosine=-np.ones(N_LAYERS), lost_at=None)
    result = dataclasses.replace(result, selection=selection, tuned=(tuned,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("directions", "similarity", "layers"):
            draw(result, name).canvas.draw()


def test_saved_files_embed_their_fonts_and_repeat_bit_for_bit(tmp_path):
    first = style.save_figure(draw(study_result(1), "similarity"), tmp_path, "a")
    second = style.save_figure(draw(study_result(1), "similarity"), tmp_path, "b")
    pdf = first[0].read_bytes()
    assert b"/CIDFontType2" in pdf and b"/Type3" not in pdf
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


def test_the_style_stays_inside():
    before = dict(mpl.rcParams)
    draw(study_result(1), "pca")
    assert dict(mpl.rcParams) == before


def test_an_unknown_figure_is_named():
    with pytest.raises(ResultError, match=r"'nope'.*behaviour"):
        study_result(1).plot("nope")


def test_short_names_stay_distinct_and_fit():
    names = [LONG_NAME, LONG_NAME.replace("very", "quite"), SELF_NAME, SELF_NAME, "a" * 100, "$x_1$\n\x00"]
    short = style.short_names(names, width=20, lines=2)
    assert len(set(short)) == 5 and short[2] == short[3]
    assert all(len(line) <= 20 for name in short[:5] for line in name.split("\n"))
    assert all(name.count("\n") <= 1 for name in short)
    assert short[5] == r"\$x_1\$\n\x00"


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0"),
        (1.0, "100"),
        (0.004, "0.4"),
        (0.996, "99.6"),
        (0.614, "61"),
        (-0.02, "−2"),
        (float("nan"), "–"),
    ],
)
def test_percent_never_rounds_to_certainty(share, text):
    assert style.percent(share) == text
