"""Figures of patching show the planted numbers, say what is missing, and draw without warnings."""

import itertools
import warnings

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from test_patch_grid import grid_of

from interp.errors import ResultError
from interp.report import style
from interp.report.patching_figures import (
    agreement_scatter,
    block_curves,
    layer_curves,
    patch_maps,
    pattern_panels,
    restored_curves,
)


def table(layers=5, columns=4, n=6, seed=0, **names):
    rng = np.random.default_rng(seed)
    patched = np.linspace(0, 1, layers)[:, None] * np.ones(columns) + 0.05 * rng.normal(
        size=(n, layers, columns)
    )
    found = grid_of(patched, np.ones(n), np.zeros(n)).to_frame(0.0)
    return found.assign(**names)


def drawn(figure):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.canvas.draw()
    assert figure.get_size_inches()[0] in (style.SINGLE, style.DOUBLE)
    renderer = figure.canvas.get_renderer()
    boxes = [axes.get_tightbbox(renderer) for axes in figure.axes if axes.get_visible()]
    for a, b in itertools.combinations(boxes, 2):
        assert min(min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)) <= 3
    return {t.get_text() for t in figure.findobj(mpl.text.Text) if t.get_visible()}


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_maps_hold_the_values_on_one_scale(n):
    tables = [table(seed=k, columns=30 if k else 4) for k in range(n)]
    figure = patch_maps(tables, [f"name {k}" for k in range(n)])
    words = drawn(figure)
    assert "share of the gap" in words and "layer" in words
    meshes = [c for axes in figure.axes for c in axes.collections if hasattr(c, "get_coordinates")][:n]
    values = np.asarray(meshes[0].get_array()).reshape(4, 5)
    assert np.allclose(values[:, -1], tables[0].query("layer == 4")["value"])
    assert len({mesh.norm.vmax for mesh in meshes}) == 1
    with pytest.raises(ResultError, match="a table to draw is empty"):
        patch_maps([pd.DataFrame()])


def test_a_column_that_a_layer_lacks_is_left_blank():
    part = table()
    part.loc[part["layer"] == 2, "value"] = np.nan
    drawn(patch_maps([part]))


def test_curves_stand_beside_their_null():
    figure = layer_curves({"whole": table(), "guarded": table(seed=1)}, column="3", null=table(seed=2))
    words = drawn(figure)
    assert {"whole", "guarded", "shuffled pairs, 95 %"} <= words
    line = next(line for line in figure.axes[0].lines if line.get_label() == "whole")
    assert np.allclose(line.get_ydata(), table().query("column == '3'")["value"])
    with pytest.raises(ResultError, match="there is no column 'x'; there are 0, 1, 2, 3"):
        layer_curves({"whole": table()}, column="x")


def test_agreement_has_a_point_a_cell():
    figure = agreement_scatter([table()], [table(seed=3)], ["ρ = 0.90"])
    assert "resid_pre ρ = 0.90" in " ".join(drawn(figure))
    assert len(figure.axes[0].collections[0].get_offsets()) == 20


def test_blocks_are_drawn_from_both_ends():
    part = table(columns=3).replace({"column": {"0": "alone", "1": "up to", "2": "from"}})
    words = drawn(block_curves({"log-odds": part, "refused": part}))
    assert {"all blocks up to it", "all blocks from it on", "block"} <= words


def test_patterns_and_restored_shares_are_drawn():
    patterns = np.tril(np.ones((2, 5, 5)) / 5)
    words = drawn(pattern_panels(patterns, [(1, 0), (3, 2)], ["how", "do", "$i", "rob", "?"]))
    assert any("layer 3, head 2" in word for word in words)
    rows = [
        {"seed": s, "choice": c, "k": k, "draw": d, "refused": 0.1 * k, "benign": 0.9, "skill": 0.5}
        | {f"{m}_{w}": 0.5 for m in ("refused", "benign", "skill") for w in ("aligned", "tuned")}
        for s, c, k, d in itertools.product((0, 1), ("best", "random"), (1, 2, 8), (0, 1))
    ]
    figure = restored_curves(pd.DataFrame(rows))
    assert {"best modules", "random modules", "aligned", "tuned"} <= drawn(figure)
    best = next(line for line in figure.axes[0].lines if line.get_label() == "best modules")
    assert np.allclose(best.get_ydata(), [0.1, 0.2, 0.8])
