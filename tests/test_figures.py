"""Figures: told apart by colour, dash and marker; honest bands; the same bytes each time."""

import math

import matplotlib
import numpy as np
import pytest
import torch

from learnopt import figures, palette
from learnopt.seeding import generator


@pytest.fixture
def shown(monkeypatch):
    """What figures.show hands to the notebook: a list of (data, metadata)."""
    outputs = []
    monkeypatch.setattr(
        figures, "display", lambda data, metadata=None, raw=False: outputs.append((data, metadata))
    )
    return outputs


def random_runs(n_runs, n_steps=12):
    runs = torch.rand(n_runs, n_steps, generator=generator(0, "figures")) + 0.1
    assert runs.std() > 0.1
    return runs


def test_a_method_keeps_its_look_in_any_company():
    alone = palette.looks(["Adam"])["Adam"]
    assert palette.looks(["SGD", "something", "Adam, lr 0.1"])["Adam, lr 0.1"] == alone


def test_no_two_of_seven_labels_share_a_marker_or_both_colour_and_dashes():
    chosen = palette.looks(["SGD", "Adam 0.1", "Adam 0.3", "a", "b", "c", "d"]).values()
    assert len({(look.colour, look.dashes) for look in chosen}) == 7
    assert len({look.marker for look in chosen}) == 7


def test_an_eighth_label_still_gets_a_look():
    assert len(palette.looks([str(k) for k in range(9)])) == 9


def test_labels_may_come_from_a_generator():
    assert palette.looks(x for x in "ab") == palette.looks(["a", "b"])


def test_a_figure_without_a_label_has_no_legend():
    for drawn in ({}, {"_a": [1, 2], "_b": [2, 1]}):
        _, ax = figures.new()
        figures.lines(ax, range(2), drawn, x_label="x", y_label="y")
        assert ax.get_legend() is None


def test_the_standard_error_band_is_the_standard_error_of_the_mean():
    runs = random_runs(50)
    fig, ax = figures.new()
    figures.curves(ax, {"Adam": runs})
    (line,), (band,) = ax.lines, ax.collections
    np.testing.assert_allclose(line.get_ydata(), runs.double().mean(0))
    error = runs.double().std(0) / math.sqrt(50)
    top = band.get_paths()[0].vertices[:, 1].max()
    np.testing.assert_allclose(top, (runs.double().mean(0) + error).max())


def test_the_legend_says_what_the_band_is_and_of_how_many_runs():
    for band, words in (("se", "mean of 5 runs"), ("quartiles", "median of 5 runs")):
        fig, ax = figures.new()
        figures.curves(ax, {"Adam": random_runs(5)}, band=band)
        assert words in ax.get_legend().get_title().get_text()


def test_an_unknown_band_is_refused():
    fig, ax = figures.new()
    with pytest.raises(ValueError, match="'sd' is not one of"):
        figures.curves(ax, {"Adam": random_runs(5)}, band="sd")


def test_runs_that_diverge_do_not_move_the_median_and_raise_no_warning(shown):
    runs = random_runs(5)
    runs[0, 3:] = math.inf
    runs[1, 5:] = math.nan
    fig, axes = figures.new(2)
    figures.curves(axes[0], {"Adam": runs})
    figures.curves(axes[1], {"Adam": runs}, band="quartiles")
    assert np.isfinite(axes[1].lines[0].get_ydata()).all()
    figures.show(fig, alt="two panels")


def test_lines_take_their_own_x():
    fig, ax = figures.new()
    figures.lines(ax, [1, 2], {"a": [3, 4], "b": ([5, 6, 7], [1, 2, 3])}, x_label="x", y_label="y")
    assert [len(line.get_xdata()) for line in ax.lines] == [2, 3]


@pytest.mark.parametrize(("n", "below"), [(4, False), (5, True)])
def test_a_long_legend_stands_below_the_axes(n, below):
    fig, ax = figures.new()
    ax.axvline(3.5)  # made by hand: its data are no array
    figures.lines(
        ax, range(9), {f"run {k}": range(k, k + 9) for k in range(n)}, x_label="x", y_label="y"
    )
    fig.draw_without_rendering()
    top = ax.get_legend().get_window_extent().y1
    assert (top < ax.get_window_extent().y0) == below


def test_counts_get_whole_ticks_and_measures_need_not():
    for x, whole in ((range(3), True), ([0.0, 0.5, 1.0], False)):
        fig, ax = figures.new()
        figures.lines(ax, x, {"run": [1, 2, 3]}, x_label="x", y_label="y")
        assert all(tick % 1 == 0 for tick in ax.get_xticks()) == whole


def test_the_same_arrays_give_the_same_png_with_its_alt_text(shown):
    for _ in range(2):
        fig, ax = figures.new()
        figures.curves(ax, {"Adam": random_runs(5), "SGD": random_runs(5) + 1})
        figures.show(fig, alt="Adam below SGD")
    (first, metadata), (second, _) = shown
    assert first["image/png"] == second["image/png"]
    assert first["image/png"].startswith(b"\x89PNG") and len(first["image/png"]) < 100_000
    assert metadata["image/png"] == {"alt": "Adam below SGD", "width": 640}
    assert first["text/plain"] == "Figure: Adam below SGD"


def test_drawing_changes_no_setting_of_matplotlib(shown):
    before = dict(matplotlib.rcParams)
    fig, ax = figures.new()
    figures.lines(ax, [1, 2], {"a": [1, 2]}, x_label="x", y_label="y", log_x=True, log_y=True)
    figures.show(fig, alt="a line")
    assert dict(matplotlib.rcParams) == before


def test_a_table_escapes_its_texts_and_rounds_its_numbers(shown):
    figures.table(["method", "loss"], [["a < b", 1.23456], ["c", 2]])
    ((data, _),) = shown
    assert data["text/plain"] == "method | loss\na < b | 1.235\nc | 2"
    assert '<td>a &lt; b</td><td style="white-space:nowrap">1.235</td>' in data["text/html"]
