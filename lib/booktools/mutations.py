"""Damages files and names in thousands of ways, and judges what the loaders make of them.

    counts = mutations.files(kind, n=500)     # Counter: "loaded", "RecordError", ...

judge.py says what is expected of a loader. What it finds, hypothesis shrinks to the smallest such
input.
"""

import contextlib
import copy
import math
import tempfile
from collections import Counter
from pathlib import Path

import hypothesis
import numpy as np
import torch
from hypothesis import Phase
from hypothesis import strategies as st

from booktools import bad_files, judge
from booktools.bad_data import TINY, Payload
from learnopt import download

TRICKS = ["..", "../up", "/etc/passwd", "~/x", "a/../../b", "a\\b", "a\0b", "", ".", ".hidden", "*",
          "con:", "x" * 300, "\ud800", "$(touch x)", "`id`", "; rm -rf x", "../../up.npz",
          "\n"]  # fmt: skip
ODD = [None, True, -1, 0, 10**400, 2**64, 1e308, -1e308, math.nan, math.inf, "nan", "1e-3", "1e999",
       [], {}, [[[]]], {"a": {}}, [None], b"\x00\xff", "x" * 3000, *TRICKS]  # fmt: skip
SNIPPETS = [b"NaN", b"1e999", b"\0", b"\xff\xfe", b"[" * 3000, b"9" * 5000, b"&a [*a, *a]", b": ",
            b"!!python/object/apply:os.system ['id']", b"'", b'"', b"}", b"PK\x03\x04", b"\x80\x04",
            b"{" * 3000, b"- " * 3000, b"\n", b"\r", b"null"]  # fmt: skip
# Ten names, each of them a list of ten of the one before
LAUGHS = b"a: &a0 [x]\n" + b"".join(
    b"a%d: &a%d [%s]\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 10)) for i in range(1, 10)
)


ROOTS = ("json", "npz", "csv")  # of examples that are more than one file

# ---- mutations


@st.composite
def bytes_like(draw, content):
    """The content with a piece cut off, cut out, replaced, put in, or doubled."""
    at = draw(st.integers(0, len(content)))
    length = draw(st.sampled_from([0, 1, 1, 2, 16, 200]))
    new = draw(st.one_of(st.sampled_from(SNIPPETS), st.binary(min_size=1, max_size=16)))
    head, tail = content[:at], content[at + length :]
    return draw(st.sampled_from(
        [head, tail, head + tail, head + new + tail, head + new, content + content, new,
         b"", LAUGHS, LAUGHS + content, content + b"\n" + LAUGHS]
    ))  # fmt: skip


def places(tree, above=()):
    """The paths of all things in a tree of dicts and lists, below its root."""
    if isinstance(tree, dict):
        items = tree.items()
    else:
        items = enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*above, key)
        yield from places(value, (*above, key))


@st.composite
def changes(draw, tree):
    """One change of a tree: the path of a thing in it, what happens to it, and a new value or name.

    The value is given by its number in `values_like`, so that a report of hypothesis is short.
    """
    path = draw(st.sampled_from(list(places(tree))))
    how = draw(st.sampled_from(["set", "set", "set", "drop", "rename", "add"]))
    if how == "set":
        return path, how, draw(st.integers(0, len(values_like(at(tree, path))) - 1))
    return path, how, draw(st.sampled_from(["extra", "seconds", *TRICKS]))


def at(tree, path):
    """What is at this path in a tree."""
    for key in path:
        tree = tree[key]
    return tree


def changed(tree, path, how, new):
    """A copy of the tree with one change, and names of which an error should give one."""
    tree = copy.deepcopy(tree)
    owner, last = at(tree, path[:-1]), path[-1]
    fields = [key for key in path if isinstance(key, str) and key not in ROOTS][-2:]
    if how == "set":
        owner[last] = values_like(owner[last])[new]
    elif how == "drop":
        del owner[last]
    elif isinstance(owner, list):
        owner.append(owner[last] if new == "extra" else new)
    else:
        owner[new] = owner[last]
        if how == "rename" and new != last:
            del owner[last]
        fields.append(new)
    return tree, fields


def values_like(value):
    """Other values for one: odd ones of any type, and arrays that are nearly right."""
    if not isinstance(value, np.ndarray | torch.Tensor):
        return [*ODD, Payload()]
    array = np.asarray(value)
    found = [np.full_like(array, fill) for fill in _fills(array.dtype)]
    found += (
        [array[None], array.ravel(), array[..., :0], array[:1]] if array.ndim else [array[None]]
    )
    if array.dtype.kind != "U":
        found += [array.astype(kind) for kind in ("f8", "i4", "u1", "c8") if array.dtype != kind]
    if isinstance(value, torch.Tensor):
        return [*(torch.from_numpy(array.copy()) for array in found), Payload(), *ODD]
    return [*found, np.array([Payload()], dtype=object), "x", 1e30, None]


def payloads(options):
    """The numbers of those of `values_like` that execute code when they are unpickled."""
    arrays = [isinstance(value, np.ndarray) and value.dtype == object for value in options]
    return [i for i, v in enumerate(options) if arrays[i] or isinstance(v, Payload)]


def _fills(dtype):
    if dtype.kind == "f":
        return (math.nan, math.inf, -math.inf, 3e38, 0)
    return ("nan", "../up", "raw") if dtype.kind == "U" else (0, 255)


def files(kind, n):
    """Try n mutations of the files of this kind; return how often each outcome came."""
    counts = Counter()
    valid = kind.pack(kind.tree)
    assert judge.attempt(kind, valid) == "loaded"

    @_examples(n)
    @hypothesis.given(st.data())
    def property_of_the_loader(data):
        fields = ()
        if data.draw(st.booleans()):
            tree, fields = changed(kind.tree, *data.draw(changes(kind.tree)))
            try:
                contents = kind.pack(tree)
            except Exception:  # cannot be written in this format at all
                hypothesis.reject()
        else:
            name = data.draw(st.sampled_from(sorted(valid)))
            contents = valid | {name: data.draw(bytes_like(valid[name]))}
            if len(valid) > 1 and data.draw(st.integers(0, 20)) == 20:
                del contents[name]
        counts[judge.attempt(kind, contents, fields)] += 1

    property_of_the_loader()
    return counts


def names(n):
    """Try n names, most of them tricks, wherever the book makes a path of a name."""
    counts = Counter()

    @_examples(n)
    @hypothesis.given(st.sampled_from(bad_files.named()), st.one_of(
        st.sampled_from(TRICKS), st.text(max_size=20),
        st.text("./\\~a0*", min_size=1, max_size=8),
    ))  # fmt: skip
    def property_of_a_name(user, name):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "01_small.ipynb").touch()
            try:
                with judge.WATCH.switched_on():
                    path = user.use(Path(folder), name)
            except user.error as error:
                assert judge.REMEDIES.search(str(error)), f"no remedy: {error}"
                counts[type(error).__name__] += 1
            else:
                assert Path(folder).resolve() in Path(path).resolve().parents, path
                counts["allowed"] += 1

    property_of_a_name()
    return counts


def _examples(n):
    return hypothesis.settings(
        max_examples=n, derandomize=True, phases=[Phase.generate, Phase.shrink], database=None,
        deadline=None, suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip


@contextlib.contextmanager
def tiny_data_set():
    """A context in which there is a data set `tiny`."""
    download.SOURCES["tiny"] = TINY
    try:
        yield
    finally:
        del download.SOURCES["tiny"]
