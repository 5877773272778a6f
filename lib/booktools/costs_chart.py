"""The chart of the page "What it costs": a dot for each way of each work, as SVG."""

import io
import textwrap

import matplotlib
from matplotlib.figure import Figure
from matplotlib.transforms import blended_transform_factory

from learnopt.palette import looks

SETTINGS = {"svg.hashsalt": "costs", "svg.fonttype": "none", "font.size": 9}
ROW = 0.26  # inches


def draw(bench: dict) -> bytes:
    """The SVG; the same numbers give the same bytes. bench: name of a processor -> its run."""
    titles, found = {}, {}  # of works; (work, way) -> {processor: row}, ways of the same work only
    for name, run in bench.items():
        for entry in run["works"]:
            titles.setdefault(entry["work"], entry["title"])
            for row in entry["rows"]:
                if row["same"]:
                    found.setdefault((entry["work"], row["peer"]), {})[name] = row
    places, at = {}, 0.0
    for work in titles:
        ways = [key for key in found if key[0] == work]
        places |= {key: at - k for k, key in enumerate([(work, None), *ways]) if ways}
        at -= len(ways) + 1.5 if ways else 0
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(7.2, ROW * -at + 1.0), layout="constrained")
        axes = figure.add_subplot()
        _dots(axes, bench, found, places)
        axes.set(xscale="log", xlabel="time over that of the fast path", ylim=(at + 1, 1))
        axes.set_title("The library's fast paths (1) beside other ways", loc="left")
        axes.axvline(1, color="black", linewidth=1)
        _label(axes, titles, places)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()


def _dots(axes, bench, found, places):
    for k, (name, look) in enumerate(looks(bench).items()):
        shift = 0.22 - 0.44 * k / max(1, len(bench) - 1)  # the runs of a way one above the other
        rows = [(places[key] + shift, by[name]) for key, by in found.items() if name in by]
        middles = [row["ratio"] for _, row in rows]
        ends = [[row["ratio"] - row["low"] for _, row in rows]]
        ends += [[row["high"] - row["ratio"] for _, row in rows]]
        axes.errorbar(
            middles, [y for y, _ in rows], xerr=ends, label=name, color=look.colour,
            fmt=look.marker, markersize=4, linewidth=1,
        )  # fmt: skip
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=3.5, ncols=2)


def _label(axes, titles, places):
    axes.set_yticks([y for (_, way), y in places.items() if way])
    axes.set_yticklabels([textwrap.fill(way, 34) for _, way in places if way])
    left = blended_transform_factory(axes.figure.transFigure, axes.transData)
    for (work, way), y in places.items():
        if way is None:
            title = axes.text(0.01, y, titles[work], transform=left, weight="bold", va="center")
            title.set_in_layout(False)
    axes.set_xticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
    axes.minorticks_off()
    axes.grid(axis="x", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
