"""The slider: what every position shows, one answer for the same arrays, and what it refuses."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from learnopt import interactive, svg

STEPS = np.arange(5)


def decay(rates):
    return np.exp(-np.outer(rates, STEPS))


def make(**changes):
    arguments = {
        "knobs": {"rate": [0.1, 0.5, 2.0]},
        "lines": {"loss": (STEPS, decay([0.1, 0.5, 2.0])), "target": (STEPS, np.full(5, 0.5))},
        "title": "A decay",
        "x_label": "step",
        "y_label": "loss",
    }
    arguments |= changes
    return interactive.slider(arguments.pop("knobs"), arguments.pop("lines"), **arguments)


def stored(figure):
    return json.loads(re.search(r'json">(.*?)</script>', figure.html, re.DOTALL)[1])


def test_every_position_of_the_knob_has_its_own_path_and_what_is_fixed_is_stored_once():
    moving, fixed = stored(make())["paths"]
    assert len(moving) == len(set(moving)) == 3
    assert len(fixed) == 1


def test_what_only_one_of_two_knobs_moves_is_stored_once_for_each_of_its_values():
    values = np.arange(3.0)[:, None] + STEPS  # moved by the second knob alone
    data = stored(make(knobs={"a": [1, 2], "b": [1, 2, 3]}, lines={"y": (STEPS, values)}))
    assert len(data["paths"][0]) == 3 and data["at"][0] == [0, 1, 2, 0, 1, 2]


def test_two_knobs_make_a_grid_with_the_last_knob_fastest():
    values = np.arange(6.0).reshape(2, 3, 1) + STEPS
    figure = make(knobs={"a": [1, 2], "b": [1, 2, 3]}, lines={"y": (STEPS, values)})
    data = stored(figure)
    paths = [data["paths"][0][k] for k in data["at"][0]]
    ys = [int(re.match(r"M\d+ (\d+)", path)[1]) for path in paths]
    assert len(set(paths)) == 6 and ys == sorted(ys, reverse=True)  # upwards is a smaller y


def test_the_first_picture_is_drawn_without_any_script():
    figure = make(start=[2])
    first = re.search(r'<path data-line d="([^"]*)"', figure.html)[1]
    assert first == stored(figure)["paths"][0][2]
    assert "<output>2</output>" in figure.html


def test_the_same_arrays_give_the_same_bytes_and_other_arrays_another_key():
    def key(figure):
        return re.search(r'data-otl="(\w+)"', figure.html)[1]

    assert make() == make()
    assert key(make()) != key(make(title="Another"))


def test_points_lie_where_the_axes_say():
    x_axis, y_axis = svg.axes([[0, 10]], [[1e-2, 1.0]], (0, 10), (1e-2, 1.0), False, True)
    np.testing.assert_allclose(x_axis.place([0, 5, 10]), [svg.LEFT, 2870, svg.RIGHT])
    np.testing.assert_allclose(y_axis.place([1e-2, 1e-1, 1]), [svg.BOTTOM, 1420, svg.TOP])


def test_ticks_are_round_numbers_inside_the_axis():
    x_axis, y_axis = svg.axes([], [], (0, 10), (1e-6, 1e3), False, True)
    assert [text for _, text in x_axis.ticks()] == ["0", "2", "4", "6", "8", "10"]
    assert "10⁻⁴" in [text for _, text in y_axis.ticks()]


def test_a_tick_between_two_powers_of_ten_says_its_factor():
    _, y_axis = svg.axes([[0, 10]], [[1.5e-4, 3e-3]], None, None, False, True)
    assert [text for _, text in y_axis.ticks()] == ["2·10⁻⁴", "5·10⁻⁴", "0.001", "0.002"]
    _, y_axis = svg.axes([[0, 10]], [[1500, 30_000]], None, None, False, True)
    assert [text for _, text in y_axis.ticks()] == ["2·10³", "5·10³", "10⁴", "2·10⁴"]


def test_a_run_that_diverges_leaves_a_gap_and_raises_no_warning():
    y = np.array([1.0, 2.0, np.nan, np.inf, 3.0])
    path = stored(make(lines={"loss": (STEPS, y)}))["paths"][0][0]
    assert path.count("M") == 2
    stored(make(lines={"loss": (STEPS, y)}, log_y=True))


def test_texts_cannot_break_out_of_the_page():
    bad = "</script><b>"
    figure = make(title=bad, notes=[bad, bad, bad], knobs={bad: [bad, "x", "y"]})
    tags = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append(tag)
    parser.feed(figure.html)
    assert "b" not in tags and tags.count("script") == 2
    assert stored(figure)["notes"][0] == bad


def test_the_inputs_have_names_and_values_for_a_screen_reader():
    html = make().html
    assert 'aria-label="rate"' in html and 'aria-valuetext="0.5"' in html
    assert re.search(r'<svg[^>]*role="img" aria-label="A decay[^"]*loss, target', html)


def test_tensors_are_taken_too():
    figure = make(lines={"loss": (torch.arange(5), torch.rand(3, 5, requires_grad=True))})
    assert len(stored(figure)["paths"][0]) == 3


def test_nothing_is_asked_of_the_network():
    assert "http" not in make().html


def test_forty_pictures_stay_under_sixty_kilobytes():
    rates = np.linspace(0.1, 2, 40)
    steps = np.arange(100)
    losses = np.exp(-np.outer(rates, steps) / 30)
    figure = make(
        knobs={"rate": rates}, lines={"loss": (steps, losses), "twice": (steps, 2 * losses)}
    )
    assert len(figure.html) < 60_000


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"knobs": {}}, "one or two knobs"),
        ({"knobs": {"rate": []}}, "one or two knobs"),
        ({"lines": {"loss": (STEPS, decay([0.1, 0.5]))}}, r"'loss': shape \(2, 5\) does not fit"),
        ({"notes": ["one"]}, r"notes have the shape \(1,\), the knobs \(3,\)"),
        ({"lines": {"loss": (STEPS, -decay([1.0])[0])}, "log_y": True}, "finite value .* log axis"),
        ({"dots": ("less",)}, r"dots names \['less'\]; the lines are \['loss', 'target'\]"),
        ({"y_range": (1, 1)}, "range 1 to 1: must be finite and ascending"),
        ({"y_range": (0, 10), "log_y": True}, "range 0 to 10: .* above 0 on a log axis"),
        ({"x_range": (0, np.inf)}, "range 0 to inf: must be finite"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_clear_message(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_a_constant_is_drawn_whatever_its_size():
    for value in (0.0, 1e20, -1e20):
        figure = make(lines={"flat": (STEPS, np.full(5, value))})
        assert all("M" in path for paths in stored(figure)["paths"] for path in paths)


def test_whole_numbers_are_shown_with_all_their_digits():
    for steps in ([1000, 1001, 12345], np.array([1000, 1001, 12345])):
        assert stored(make(knobs={"steps": steps}))["knobs"] == [["1000", "1001", "12345"]]


def test_the_live_version_draws_at_once_and_again_at_every_move():
    calls = []

    def picture(lr, steps):
        calls.append((lr, steps))
        return b"png %d" % len(calls)

    box = interactive.live(picture, lr=(0.0, 1.0, 0.1), steps=(1, 9, 1))
    lr, steps, image = box.children
    assert calls == [(0.5, 5)] and image.value == b"png 1"
    steps.value = 7
    lr.value = 0.2
    assert calls[1:] == [(0.5, 7), (0.2, 7)] and image.value == b"png 3"
