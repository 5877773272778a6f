"""Image data sets as whole tensors on the device, from files that are checked before use.

    data = datasets.load("mnist")                     # Dataset: x_train, y_train, ..., n_classes
    for x, y in datasets.minibatches(data.x_train, data.y_train, 128, 200, generator): ...

`digits` comes with scikit-learn. The others are read from <folder>/<name>.npz; the folder is
`root`, else $LEARNOPT_DATA (relative to the checkout), else data/cache of the checkout, else
~/.cache/learnopt. A file that is not there is fetched first. Every load checks the arrays' names,
types, shapes and SHA-256. What is wrong raises DatasetError; nothing is substituted.

    python -m learnopt.datasets list|fetch|verify [NAME ...] [--root FOLDER]
"""

import argparse
import hashlib
import io
import os
import reprlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from learnopt import atomic, download, provenance

DatasetError = download.DatasetError


class Dataset(NamedTuple):
    name: str
    x_train: Tensor  # float32 in [0, 1], (N, H, W) or (N, C, H, W)
    y_train: Tensor  # int64 (N,)
    x_valid: Tensor
    y_valid: Tensor
    x_test: Tensor
    y_test: Tensor
    n_classes: int
    note: str  # where the test and validation images come from


class Omniglot(NamedTuple):
    name: str
    background: Tensor  # float32 in [0, 1], ink 1: (character 964, drawing 20, H 28, W 28)
    background_alphabet: Tensor  # int64 (964,): index into alphabet_names
    evaluation: Tensor  # (659, 20, 28, 28)
    evaluation_alphabet: Tensor  # int64 (659,)
    alphabet_names: tuple[str, ...]  # 50: the 30 of the background split, then the 20 others


def load(name, root=None, device="cpu", n_valid=None, hold_out=None):
    """The data set `name` as a Dataset, or an Omniglot (no options); fetched first if need be.

    n_valid: training images set aside for validation: a fixed choice, each class in proportion,
    the rest in official order. None: as book/data.md lists; 0: all images stay in x_train.
    hold_out: the last `hold_out` training images replace the test set. None: 0, but n_test where
    the file has fewer test images than the official test set (`note` says so).
    Raises DatasetError, naming the file, what is wrong and what to do.
    """
    source = _source(name)
    found = download.digits() if name == "digits" else download.read(name, fetch(name, root))
    if name == "omniglot":
        return _omniglot(found, device)
    x, y, x_test, y_test, note = _train_and_test(name, found, hold_out)
    n_valid = source.n_valid if n_valid is None else n_valid
    if not 0 <= n_valid < len(x):
        raise DatasetError(f"{name}: n_valid={n_valid} must be 0 to {len(x) - 1}")
    train, valid = download.set_aside(y, n_valid)
    note += f"; validation: {n_valid:,} training images" if n_valid else "; no validation images"
    scale = 16 if name == "digits" else 255
    tensors = []
    for images, labels in ((x[train], y[train]), (x[valid], y[valid]), (x_test, y_test)):
        tensors.append(_images(images, scale, device))
        tensors.append(torch.from_numpy(labels).to(device, torch.int64))
    return Dataset(name, *tensors, source.n_classes, note)


def folder(root=None):
    """Where the data files are looked for; the rule is in the module's docstring."""
    if root is not None:
        return Path(root)
    checkout = provenance.checkout()
    if os.environ.get("LEARNOPT_DATA"):
        # Notebooks run in their own folder: relative to that, each would look elsewhere
        return (checkout or Path()) / os.environ["LEARNOPT_DATA"]
    return checkout / "data" / "cache" if checkout else Path.home() / ".cache" / "learnopt"


def fetch(name, root=None):
    """The path of the data set's file, fetched whole or not at all. Raises DatasetError."""
    _source(name)
    path = folder(root) / f"{name}.npz"
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=path.parent) as raw:
            found = download.arrays(name, raw)
    except Exception as error:  # torchvision, the network and the disk raise anything
        raise DatasetError(
            f"{path}: not there, and fetching it failed ({type(error).__name__}: {error}). "
            f"On a machine with network run: {download.command(name, path)} ; "
            f"or copy {path.name} there from elsewhere, or set LEARNOPT_DATA to a folder with it"
        ) from error
    write(name, path, found)
    return path


def write(name, path, found):
    """Write arrays as a data file with its checksum, whole or not at all. Raises DatasetError."""
    kept = {key: found[key] for key in _source(name).arrays if key in found}
    wrong = download.problem(name, kept)
    if wrong:
        raise DatasetError(f"{path}: not written, since {wrong}")
    kept[download.STORED_SUM] = np.array(download.content_sha256(name, kept))
    content = io.BytesIO()
    np.savez_compressed(content, **kept)
    try:
        atomic.write({path: content.getbuffer()})
    except OSError as error:
        raise DatasetError(f"{path}: not written ({error}). Free the disk or set --root") from error


def split(n, sizes, generator):
    """Disjoint random index tensors of these sizes from range(n). Raises ValueError beyond n."""
    if sum(sizes) > n:
        raise ValueError(f"sizes {tuple(sizes)} need {sum(sizes)} items, there are {n}")
    order = torch.randperm(n, generator=generator, device=generator.device)
    return list(order[: sum(sizes)].split(list(sizes)))


def pool(x, k):
    """Means of k x k blocks of images (..., H, W): (..., H/k, W/k). ValueError unless k fits."""
    if x.shape[-1] % k or x.shape[-2] % k:
        raise ValueError(f"images of {tuple(x.shape[-2:])} do not divide into {k} x {k} blocks")
    return x.unflatten(-1, (-1, k)).unflatten(-3, (-1, k)).mean((-3, -1))


class Minibatches(Sequence):
    """A list of (x, y) that holds only indices; an item is gathered when it is asked for."""

    def __init__(self, x, y, indices):
        self.x, self.y, self.indices = x, y, indices

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return Minibatches(self.x, self.y, self.indices[i])
        return self.x[self.indices[i]], self.y[self.indices[i]]


def minibatches(x, y, batch_size, n_batches, generator, drop_last=False):
    """n_batches of (x, y), without replacement inside a pass, reshuffled for each pass.

    A pass ends on a short batch where batch_size does not divide len(x) (30,000 images at 128: 235
    batches, the last of 48); drop_last leaves it out. The whole order is drawn here: reading the
    batches twice, or in part, gives the same ones. Raises ValueError where sizes do not fit.
    """
    n = len(x)
    if len(y) != n or not 1 <= batch_size <= n:
        raise ValueError(f"{n} images, {len(y)} labels, batches of {batch_size}: cannot be cut")
    indices = []
    while len(indices) < n_batches:
        order = torch.randperm(n, generator=generator, device=generator.device).to(x.device)
        end = n - n % batch_size if drop_last else n
        indices.extend(order[:end].split(batch_size))
    return Minibatches(x, y, indices[:n_batches])


def _source(name):
    if not isinstance(name, str) or name not in download.SOURCES:
        known = ", ".join(download.SOURCES)
        raise DatasetError(f"there is no data set {reprlib.repr(name)}; there are {known}")
    return download.SOURCES[name]


def _train_and_test(name, found, hold_out):
    """Images and labels of both, as uint8 arrays, and where the test images come from."""
    x, y, x_test, y_test = (found[key] for key in ("x_train", "y_train", "x_test", "y_test"))
    official = "the official test images" if name != "digits" else "300 of the 1,797 digits"
    note = f"test: {official}"
    if hold_out is None:
        n_test = download.SOURCES[name].n_test
        hold_out = n_test if len(x_test) < n_test else 0
    if not 0 <= hold_out < len(x):
        raise DatasetError(f"{name}: hold_out={hold_out} must be 0 to {len(x) - 1}")
    if hold_out:
        x, y, x_test, y_test = x[:-hold_out], y[:-hold_out], x[-hold_out:], y[-hold_out:]
        note = f"test: the last {hold_out:,} training images, not {official}"
    return x, y, x_test, y_test, note


def _images(x, scale, device):
    """uint8 (N, H, W[, C]) to float32 in [0, 1], channels first."""
    x = torch.from_numpy(x).to(device)
    x = x.movedim(-1, 1).contiguous() if x.dim() == 4 else x
    return x.to(torch.float32).div_(scale)


def _omniglot(found, device):
    parts = []
    for evaluation in (False, True):
        chosen = found["evaluation"] == evaluation
        x = torch.from_numpy(found["x"][chosen]).to(device)
        parts.append(x.to(torch.float32).div_(255))
        parts.append(torch.from_numpy(found["alphabet_id"][chosen]).to(device, torch.int64))
    return Omniglot("omniglot", *parts, tuple(found["alphabet_names"].tolist()))


def main(arguments=None):
    """The command line. Returns the exit status: 1 if any data set failed."""
    parser = argparse.ArgumentParser(prog="python -m learnopt.datasets")
    parser.add_argument("command", choices=["list", "fetch", "verify"])
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all, but not for fetch")
    parser.add_argument("--root", help="folder of the files, instead of the usual one")
    options = parser.parse_args(arguments)
    if options.command == "fetch" and not options.names:
        parser.error(f"say which to fetch: {' '.join(download.SOURCES)}")
    failed = False
    for name in options.names or download.SOURCES:
        try:
            print(f"{name:15} {_report(options.command, name, options.root, options.names)}")
        except DatasetError as error:
            failed = True
            print(f"{name:15} FAILED {error}", file=sys.stderr)
    return int(failed)


def _report(command, name, root, asked_for):
    source = _source(name)
    if name == "digits" and download.digits():
        return "comes with scikit-learn"
    path = fetch(name, root) if command == "fetch" else folder(root) / f"{name}.npz"
    if command == "list" or not (path.exists() or asked_for):
        return f"{'present' if path.exists() else 'missing'}  {path}"
    if not path.exists():
        raise DatasetError(f"{path}: not there. Run: {download.command(name, path)}")
    download.read(name, path)
    same = hashlib.sha256(path.read_bytes()).hexdigest() == source.file
    return f"intact   {path}{'  (the file listed in book/data.md)' if same else ''}"


if __name__ == "__main__":
    sys.exit(main())
