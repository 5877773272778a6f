"""The book's figures: arrays in, Axes out. Nothing here trains or reads files.

    fig, ax = figures.new()
    figures.curves(ax, {"Adam": losses_adam, "SGD": losses_sgd})   # losses (n_runs, n_steps)
    figures.show(fig, alt="Adam's loss falls below that of SGD from step 20 on.")

The lines take their looks from palette.py. No global setting of matplotlib is changed.
"""

import html
import io

import matplotlib
import numpy as np
from IPython.display import display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from learnopt.palette import Look, looks

PIXELS_PER_INCH = 100  # as shown on the page
SHARPNESS = 1.6  # drawn so many times finer, for phones and large screens
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.title_fontsize": 9,
    "figure.facecolor": "white",  # a white card, also on a dark page
}
HUGE = 1e300
MOST_INSIDE = 4  # a longer legend would cover the lines: it stands below them
SHORT = 12  # letters of a label that fits in a third of a panel


def new(n_columns: int = 1, n_rows: int = 1, width: float = 6.4, height: float = 3.6, **kwargs):
    """A figure and its Axes (one, or an array of them), as ``plt.subplots``; inches."""
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(fig)
        return fig, fig.subplots(n_rows, n_columns, **kwargs)


def lines(ax, x, ys, *, x_label, y_label, title="", log_x=False, log_y=False, legend_title=None):
    """One line per label. x ``(n,)``; ys: label -> ``(n,)``, or a pair (x, y) of its own."""
    with matplotlib.rc_context(STYLE):
        for label, look in looks(ys).items():
            own_x, y = ys[label] if isinstance(ys[label], tuple) else (x, ys[label])
            _line(ax, _array(own_x), _array(y), label, look)
        return _finish(ax, x_label, y_label, title, log_x, log_y, len(ys), legend_title)


def curves(
    ax, runs, *, band="se", x=None, x_label="step", y_label="loss",
    title="", log_x=False, log_y=True,
):  # fmt: skip
    """The middle of many runs and their spread. runs: label -> ``(n_runs, n_steps)``.

    band "se": mean and one standard error of it to each side. band "quartiles": median and the
    middle half of the runs. The legend says which, and of how many runs. Raises ValueError for
    another band.
    """
    if band not in BANDS:
        raise ValueError(f"band {band!r} is not one of {sorted(BANDS)}")
    middle_of, words = BANDS[band]
    counts = set()
    with matplotlib.rc_context(STYLE):
        for label, look in looks(runs).items():
            values = _array(runs[label])
            counts.add(values.shape[0])
            steps = np.arange(values.shape[1]) if x is None else _array(x)
            low, middle, high = middle_of(values)
            _line(ax, steps, middle, label, look)
            ax.fill_between(steps, low, high, color=look.colour, alpha=0.15, linewidth=0)
        legend = words.format(n=" or ".join(f"{n:,}" for n in sorted(counts)))
        return _finish(ax, x_label, y_label, title, log_x, log_y, 2, legend)


def show(fig, alt: str) -> None:
    """Put the figure into the cell's output, with a text for those who cannot see it."""
    details = {"alt": alt, "width": round(fig.get_figwidth() * PIXELS_PER_INCH)}
    data = {"image/png": png(fig), "text/plain": f"Figure: {alt}"}
    display(data, metadata={"image/png": details}, raw=True)


def png(fig) -> bytes:
    """The figure as a PNG, with no date and no random id: the same arrays give the same bytes."""
    drawn, small = io.BytesIO(), io.BytesIO()
    with matplotlib.rc_context(STYLE):  # ticks are made when the figure is drawn
        fig.savefig(drawn, dpi=SHARPNESS * PIXELS_PER_INCH)
    # 64 colours are enough for a line plot and make the file three times smaller
    Image.open(drawn).convert("RGB").quantize(64).save(small, "PNG", optimize=True)
    return small.getvalue()


def table(header, rows) -> None:
    """Put a table into the cell's output. header: n texts; rows: n cells each, numbers or texts.

    A plain HTML table, which the web page, Colab and GitHub show alike; numbers get 4 digits.
    """
    texts = [[cell if isinstance(cell, str) else f"{cell:.4g}" for cell in row] for row in rows]
    names = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in header)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in texts)
    plain = "\n".join(" | ".join(row) for row in [list(header), *texts])
    page = f'<table class="dataframe"><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>'
    display({"text/html": page, "text/plain": plain}, raw=True)


def _cell(text: str) -> str:
    # a number with its interval stays on one line
    style = ' style="white-space:nowrap"' if text[:1] in tuple("+-0123456789") else ""
    return f"<td{style}>{html.escape(text)}</td>"


def _mean_and_error(values):
    with np.errstate(invalid="ignore", over="ignore"):  # a diverged run makes a gap, no warning
        mean = values.mean(0)
        error = values.std(0, ddof=1 if len(values) > 1 else 0) / np.sqrt(len(values))
        return mean - error, mean, mean + error


def _quartiles(values):
    # a run that diverged, to inf or to NaN, counts as the worst; inf itself breaks interpolation
    finite = np.where(np.isfinite(values), values, HUGE)
    quartiles = np.quantile(finite, (0.25, 0.5, 0.75), axis=0)
    return np.where(quartiles < HUGE / 1e9, quartiles, np.nan)


BANDS = {
    "se": (_mean_and_error, "mean of {n} runs\nband: 1 standard error"),
    "quartiles": (_quartiles, "median of {n} runs\nband: middle half"),
}


def _array(values) -> np.ndarray:
    values = values.detach().cpu() if hasattr(values, "detach") else values
    return np.asarray(values, dtype=np.float64)


def _line(ax, x, y, label: str, look: Look):
    # few points: mark each; many: a few marks at equal distances along the line, to tell them apart
    every = 1 if len(x) <= 25 else 0.12
    dashes = (0, look.dashes) if look.dashes else "-"
    style = {"color": look.colour, "linestyle": dashes, "marker": look.marker}
    ax.plot(x, y, label=label, markevery=every, **style)


def _finish(ax, x_label, y_label, title, log_x, log_y, n_lines, legend_title):
    ax.set(xlabel=x_label, ylabel=y_label, title=title)
    if log_x:
        ax.set_xscale("log")
    elif all((line.get_xdata(orig=False) % 1 == 0).all() for line in ax.get_lines()):  # a count
        ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    if log_y:
        ax.set_yscale("log", nonpositive="clip")
    labels = ax.get_legend_handles_labels()[1]
    if labels and (n_lines > 1 or legend_title):
        ncols = 3 if max(map(len, labels)) <= SHORT else 2
        # under the ticks and the label of the axis, which are so high at any size of the figure
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "borderaxespad": 3.8}
        where = below | {"ncols": ncols} if len(labels) > MOST_INSIDE else {}
        ax.legend(title=legend_title, alignment="left", **where)
    return ax
