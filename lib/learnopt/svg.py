"""Line plots as SVG text, small enough to hold many pictures in one page.

The drawing has its own units, WIDTH by HEIGHT, and scales with the page. Points are whole numbers
and paths are relative, about six bytes a point. Colours, dashes and dots come from palette.py.
"""

import html
import math
from typing import NamedTuple

import numpy as np
from matplotlib import ticker

from learnopt.palette import Look

WIDTH, HEIGHT = 5200, 3200
LEFT, RIGHT, TOP, BOTTOM = 700, 5040, 120, 2720  # of the plot inside the drawing
STROKE = 32
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class Axis(NamedTuple):
    low: float
    high: float
    log: bool
    start: int  # where `low` lies in the drawing
    stop: int  # where `high` lies

    def place(self, values) -> np.ndarray:
        """Positions in the drawing; values far outside stop a little outside of the plot."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            low, high, values = (
                np.log(v) if self.log else np.asarray(v, float)
                for v in (self.low, self.high, np.asarray(values, float))
            )
            share = (values - low) / (high - low)
        return self.start + (self.stop - self.start) * np.clip(share, -3, 4)

    def ticks(self) -> list[tuple[float, str]]:
        """(position, label) of about six round values."""
        few_decades = self.log and self.high < 100 * self.low
        log = ticker.LogLocator(subs=(1, 2, 5) if few_decades else (1,), numticks=7)
        locator = log if self.log else ticker.MaxNLocator(6)
        values = locator.tick_values(self.low, self.high)
        slack = 1e-9 * (self.high - self.low)
        inside = [v for v in values if self.low - slack <= v <= self.high + slack]
        return [(float(self.place(v)), _number(v, self.log)) for v in inside]


class Line(NamedTuple):
    label: str
    look: Look
    as_dots: bool
    path: str  # SVG path data


def axes(xs, ys, x_range, y_range, log_x: bool, log_y: bool) -> tuple[Axis, Axis]:
    """Axes that hold all finite values, or the given (low, high).

    Raises ValueError where nothing is finite, and for limits that no axis can have.
    """
    x_limits, y_limits = _limits(xs, x_range, log_x), _limits(ys, y_range, log_y)
    return Axis(*x_limits, log_x, LEFT, RIGHT), Axis(*y_limits, log_y, BOTTOM, TOP)


def path(x, y, as_dots: bool) -> str:
    """Path data through the positions x, y ``(n_points,)``; a gap where one is not finite."""
    parts, last = [], None
    for px, py in zip(x, y, strict=True):
        if not (math.isfinite(px) and math.isfinite(py)):
            last = None
            continue
        now = (round(px), round(py))
        if as_dots:  # a stroke of no length with round ends is a dot
            parts.append(f"M{now[0]} {now[1]}h0")
        elif last is None:
            parts.append(f"M{now[0]} {now[1]}")
        elif now != last:
            parts.append(f"l{now[0] - last[0]} {now[1] - last[1]}".replace(" -", "-"))
        last = now
    return "".join(parts)


def plot(described: str, x_axis: Axis, y_axis: Axis, x_label: str, y_label: str, lines) -> str:
    """The whole drawing. Each line is a ``path`` with the attribute ``data-line``."""
    drawn = "".join(f'<path data-line d="{line.path}" {stroke(line)}/>' for line in lines)
    x, y = (LEFT + RIGHT) // 2, (TOP + BOTTOM) // 2
    box = f'width="{RIGHT - LEFT}" height="{BOTTOM - TOP}"'
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(described)}">'
        f"{_grid(x_axis, y_axis)}"
        f'<path d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}" fill="none" stroke="#1a1a1a" stroke-width="12"/>'
        f'<text x="{x}" y="{HEIGHT - 60}" text-anchor="middle">{html.escape(x_label)}</text>'
        f'<text transform="translate(130 {y}) rotate(-90)" text-anchor="middle">'
        f"{html.escape(y_label)}</text>"
        # an inner svg cuts off what leaves the plot
        f'<svg x="{LEFT}" y="{TOP}" {box} viewBox="{LEFT} {TOP} {RIGHT - LEFT} {BOTTOM - TOP}" '
        f'overflow="hidden">{drawn}</svg></svg>'
    )


def legend(lines) -> str:
    """A sample of each line with its label."""
    samples = []
    for line in lines:
        width, path = (10, "M5 5h0") if line.as_dots else (28, "M0 5h28")
        samples.append(
            f'<span><svg width="{width}" height="10" aria-hidden="true">'
            f'<path d="{path}" {stroke(line, 2)}/></svg> {html.escape(line.label)}</span>'
        )
    return "".join(samples)


def stroke(line: Line, width: float = STROKE) -> str:
    """The SVG attributes that draw this line; ``width`` in pixels."""
    if line.as_dots:
        ends = f'stroke-width="{4 * width}" stroke-linecap="round"'
    else:
        dashes = " ".join(f"{width * length:g}" for length in line.look.dashes) or "none"
        ends = f'stroke-width="{width}" stroke-dasharray="{dashes}" stroke-linejoin="round"'
    return f'fill="none" stroke="{line.look.colour}" {ends}'


def _grid(x_axis: Axis, y_axis: Axis) -> str:
    rules, texts = [], []
    for place, text in x_axis.ticks():
        rules.append(f"M{place:.0f} {TOP}V{BOTTOM}")
        texts.append(f'<text x="{place:.0f}" y="{BOTTOM + 190}" text-anchor="middle">{text}</text>')
    for place, text in y_axis.ticks():
        rules.append(f"M{LEFT} {place:.0f}H{RIGHT}")
        texts.append(f'<text x="{LEFT - 60}" y="{place + 50:.0f}" text-anchor="end">{text}</text>')
    return f'<path d="{"".join(rules)}" stroke="#ddd" stroke-width="8"/>{"".join(texts)}'


def _limits(arrays, limits, log) -> tuple[float, float]:
    if limits is not None:
        low, high = map(float, limits)
        if not (math.isfinite(low) and math.isfinite(high) and low < high and (low > 0 or not log)):
            raise ValueError(
                f"range {low:g} to {high:g}: must be finite and ascending, above 0 on a log axis"
            )
        return low, high
    values = np.concatenate([np.ravel(np.asarray(a, float)) for a in arrays])
    values = values[np.isfinite(values) & ((values > 0) | (not log))]
    if not values.size:
        raise ValueError("no finite value to draw" + (" on a log axis" if log else ""))
    low, high = float(values.min()), float(values.max())
    if low == high:
        pad = max(1.0, 0.1 * abs(low))
        return (low / 2, high * 2) if log else (low - pad, high + pad)
    if log:
        return low / (high / low) ** 0.03, high * (high / low) ** 0.03
    return low - 0.03 * (high - low), high + 0.03 * (high - low)


def _number(value: float, log: bool) -> str:
    if log and not 0.001 <= value <= 1000:
        factor, exponent = f"{value:.3e}".split("e")
        power = "10" + str(int(exponent)).translate(SUPERSCRIPTS)
        return power if float(factor) == 1 else f"{float(factor):g}·{power}"
    return f"{value:.4g}".replace("-", "\u2212")  # the minus sign
