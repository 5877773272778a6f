"""Interactive figures that need no kernel and no network: arrays in, HTML out.

    interactive.slider(
        {"learning rate": [0.01, 0.1, 1.0]},             # one knob or two, with their values
        {"loss": (steps, losses)},                       # label -> (x, y), each (3, n_points)
        title="...", x_label="step", y_label="loss", log_y=True)

Every position of the knobs is drawn beforehand, as SVG paths; a few lines of script swap them. The
figure keeps a white card of its own, so it reads the same on a light and on a dark page. Without
script (a preview that removes it) the first picture stays. The same arrays give the same bytes.

`live` is for those who run the notebook: it draws anew at every move, and needs a kernel.
"""

import hashlib
import html
import json
from collections.abc import Callable
from itertools import product
from numbers import Integral
from typing import NamedTuple

import ipywidgets as widgets
import numpy as np

from learnopt import svg
from learnopt.palette import looks

STYLE = """
.otl-slider{max-width:35rem;margin:0 0 1rem;padding:.75rem;box-sizing:border-box;background:#fff;
color:#1a1a1a;color-scheme:light;border:1px solid #d0d0d0;border-radius:.4rem;
font-family:sans-serif;font-size:.95rem;line-height:1.4}
.otl-slider svg{background:none;vertical-align:middle}
.otl-slider>svg{display:block;width:100%;height:auto}
.otl-slider text{font-size:150px;fill:#1a1a1a;font-family:sans-serif}
.otl-title{font-weight:600}
.otl-legend>span{display:inline-block;margin-right:1.2em;white-space:nowrap}
.otl-slider label{display:block;margin:.35rem 0 0}
.otl-slider output{font-weight:600;font-variant-numeric:tabular-nums}
.otl-slider input{display:block;width:100%;margin:.3rem 0;padding:0;accent-color:#0072b2}
.otl-note{min-height:1.4em}
"""
SCRIPT = """
for (const root of document.querySelectorAll('[data-otl="KEY"]')) {
  const data = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
  const inputs = [...root.querySelectorAll('input')];
  const draw = () => {
    let frame = 0;
    inputs.forEach((input, k) => {
      const text = data.knobs[k][input.value];
      frame = frame * data.knobs[k].length + Number(input.value);
      input.parentElement.querySelector('output').textContent = text;
      input.setAttribute('aria-valuetext', text);
    });
    root.querySelectorAll('path[data-line]').forEach((path, k) =>
      path.setAttribute('d', data.paths[k][data.at[k] ? data.at[k][frame] : 0]));
    if (data.notes) root.querySelector('.otl-note').textContent = data.notes[frame];
  };
  inputs.forEach((input) => input.addEventListener('input', draw));
  draw();
}
"""


class Interactive(NamedTuple):
    """What ``slider`` returns; a notebook shows its HTML."""

    title: str
    html: str

    def _repr_html_(self):
        return self.html

    def __repr__(self):
        return f"Interactive figure: {self.title}"


def slider(
    knobs, lines, *, title, x_label, y_label, notes=None, dots=(), start=None,
    x_range=None, y_range=None, log_x=False, log_y=False,
) -> Interactive:  # fmt: skip
    """A line plot with a range input for each of one or two knobs.

    knobs: name -> values (numbers, or texts to be shown). lines: label -> (x, y), each an array
    that broadcasts to ``(n_values, n_points)``, with two knobs ``(n_values_1, n_values_2,
    n_points)``; what does not vary is stored once. Labels in ``dots`` are drawn as dots. notes: a
    text for each position of the knobs, ``(n_values[, n_values_2])``. start: the index of each
    knob at first. Ranges are (low, high); by default all finite values. Raises ValueError.
    """
    if unknown := set(dots) - set(lines):
        raise ValueError(f"dots names {sorted(unknown)}; the lines are {list(lines)}")
    counts = _counts(knobs)
    start = [n // 2 for n in counts] if start is None else list(start)
    frame = int(np.ravel_multi_index(start, counts))
    arrays = {label: [_array(values) for values in pair] for label, pair in lines.items()}
    xs, ys = zip(*arrays.values(), strict=True)
    axes = svg.axes(xs, ys, x_range, y_range, log_x, log_y)
    frames = {k: _frames(k, *pair, axes, counts, k in dots) for k, pair in arrays.items()}
    stored = [_unique(paths) for paths in frames.values()]
    data = {
        "knobs": [[_shown(v) for v in values] for values in knobs.values()],
        "paths": [paths for paths, _ in stored],
        "at": [at for _, at in stored],
        "notes": None if notes is None else _notes(notes, counts),
    }
    drawn = [
        svg.Line(label, look, label in dots, frames[label][frame])
        for label, look in looks(lines).items()
    ]
    described = f"{title}. {y_label} against {x_label}: {', '.join(lines)}."
    inputs = [_input(*knob) for knob in zip(knobs, data["knobs"], start, strict=True)]
    note = [] if notes is None else [_note(data["notes"][frame])]
    picture = svg.plot(described, *axes, x_label, y_label, drawn)
    return Interactive(title, _card(title, [_legend(drawn), picture, *inputs, *note], data))


def live(picture: Callable, **ranges) -> widgets.VBox:
    """Sliders over a picture that is drawn anew at every move; shows nothing without a kernel.

    ``picture(**values)`` returns the bytes of a PNG; ranges: name -> (low, high, step), the start
    in the middle. No output is captured, as ``ipywidgets.interact`` does: that has left a notebook
    waiting for ever when it was executed without a browser.
    """
    sliders = {name: _live_slider(name, *limits) for name, limits in ranges.items()}
    image = widgets.Image(format="png", layout={"max_width": "40rem"})

    def draw(change=None):
        image.value = picture(**{name: slider.value for name, slider in sliders.items()})

    for slider in sliders.values():
        slider.observe(draw, "value")
    draw()
    return widgets.VBox([*sliders.values(), image])


def _live_slider(name, low, high, step):
    whole = all(isinstance(value, int) for value in (low, high, step))
    make = widgets.IntSlider if whole else widgets.FloatSlider
    middle = low + step * round((high - low) / step / 2)  # on the slider's grid
    return make(middle, min=low, max=high, step=step, description=name, continuous_update=False)


def _counts(knobs) -> list[int]:
    counts = [len(values) for values in knobs.values()]
    if len(counts) not in (1, 2) or 0 in counts:
        raise ValueError(f"expected one or two knobs with values, got {counts} values")
    return counts


def _frames(label, x, y, axes, counts, as_dots) -> list[str]:
    """The path at each position of the knobs, the last knob fastest."""
    x, y = np.broadcast_arrays(np.atleast_1d(x), np.atleast_1d(y))
    lead = [1] * (len(counts) + 1 - x.ndim) + list(x.shape[:-1])
    if len(lead) != len(counts) or any(n not in (1, m) for n, m in zip(lead, counts, strict=True)):
        raise ValueError(f"line {label!r}: shape {x.shape} does not fit knobs of {counts} values")
    places = np.stack([axes[0].place(x), axes[1].place(y)], -2).reshape(-1, 2, x.shape[-1])
    paths = [svg.path(*place, as_dots) for place in places]
    at = np.broadcast_to(np.arange(len(paths)).reshape(lead), counts)
    return [paths[k] for k in at.flat]


def _unique(paths) -> tuple[list[str], list[int] | None]:
    """The different paths, and which of them each position shows; None if there is only one."""
    different = list(dict.fromkeys(paths))
    at = [different.index(path) for path in paths]
    return different, at if len(different) > 1 else None


def _legend(drawn) -> str:
    return f'<div class="otl-legend">{svg.legend(drawn)}</div>'


def _note(text) -> str:
    return f'<div class="otl-note" aria-live="polite">{html.escape(text)}</div>'


def _input(name, values, k) -> str:
    name, value = html.escape(name), html.escape(values[k])
    return (
        f'<label>{name}: <output>{value}</output><input type="range" min="0" '
        f'max="{len(values) - 1}" step="1" value="{k}" aria-label="{name}" '
        f'aria-valuetext="{value}"></label>'
    )


def _card(title, parts, data) -> str:
    # "<" is escaped so that no text can close the script element
    packed = json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    title = html.escape(title)
    body = f'<style>{STYLE}</style><div class="otl-title">{title}</div>{"".join(parts)}'
    key = hashlib.sha256((body + packed).encode()).hexdigest()[:12]
    return (
        f'<div class="otl-slider" data-otl="{key}" role="group" aria-label="{title}">{body}'
        f'<script type="application/json">{packed}</script>'
        f"<script>{SCRIPT.replace('KEY', key)}</script></div>"
    )


def _notes(notes, counts) -> list[str]:
    notes = np.asarray(notes, dtype=object)
    if notes.shape != tuple(counts):
        raise ValueError(f"notes have the shape {notes.shape}, the knobs {tuple(counts)}")
    return [str(notes[place]) for place in product(*map(range, counts))]


def _shown(value) -> str:
    return str(value) if isinstance(value, str | Integral) else f"{value:.3g}"


def _array(values) -> np.ndarray:
    values = values.detach().cpu() if hasattr(values, "detach") else values
    return np.asarray(values, dtype=np.float64)
