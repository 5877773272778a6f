"""How the lines of a figure are told apart: a colour, a dash pattern and a marker each.

The colours are those of Okabe & Ito (2008), which readers with any form of colour blindness can
tell apart; dashes and markers say the same in a grey print. A method keeps its look in every
chapter, in drawn and in interactive figures.
"""

from typing import NamedTuple


class Look(NamedTuple):
    colour: str  # "#rrggbb"
    dashes: tuple[float, ...]  # lengths of ink and gap, in line widths; () is a solid line
    marker: str  # in matplotlib's letters


LOOKS = (
    Look("#0072B2", (), "o"),
    Look("#D55E00", (4, 1.5), "s"),
    Look("#009E73", (6, 1.5, 1, 1.5), "^"),
    Look("#CC79A7", (1, 1), "D"),
    Look("#000000", (), "x"),
    Look("#E69F00", (5, 1, 1, 1, 1, 1), "v"),
    Look("#56B4E9", (8, 2), "P"),
)
METHODS = ("LSTM", "Adam", "Nesterov", "RMSprop", "SGD", "momentum")  # the look that each keeps


def looks(labels) -> dict[str, Look]:
    """A look for each label, in the order of the labels.

    A label that starts with a method's name gets that method's look, the first time; the others
    take what is left. From the eighth label on the looks repeat.
    """
    labels, free, kept = list(labels), list(LOOKS), {}
    for label in labels:
        first = label.replace(",", " ").split(" ")[0]
        if first in METHODS and LOOKS[METHODS.index(first)] in free:
            kept[label] = LOOKS[METHODS.index(first)]
            free.remove(kept[label])
    others = [label for label in labels if label not in kept]
    spare = dict(zip(others, free + list(LOOKS) * len(others), strict=False))
    return {label: kept.get(label) or spare[label] for label in labels}
