"""The published image data sets: what each must hold, and how torchvision fetches it.

SOURCES says which arrays a data set consists of, and `read` takes a file only if they fit and its
checksum does. `arrays` downloads: torchvision knows the addresses, shows a progress bar and checks
the publishers' MD5 sums. The arrays keep the official order; two sets are changed on the way:

- EMNIST is published with rows and columns exchanged; here its letters stand upright.
- Omniglot is published as 105x105 black on white; here it is 28x28 (Lanczos), ink 255, paper 0.

Where the files lie, and what a chapter gets: datasets.py. Licences and splits: book/data.md.
"""

import hashlib
import shlex
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from learnopt import npz

OMNIGLOT_SIDE = 28  # pixels: the size that the few-shot papers use
MAX_BYTES = 1_000_000_000  # unpacked; the largest of the sets has 300 MB
STORED_SUM = "content_sha256"  # the array in which a file carries its own checksum


class DatasetError(Exception):
    """A data set that is unknown, missing, damaged or not what it should be."""


class Source(NamedTuple):
    arrays: dict  # name -> (dtype, shape); a length of None is free
    n_classes: int
    n_valid: int  # training images set aside for validation unless the caller says otherwise
    n_test: int  # size of the official test set
    content: str | None = None  # `content_sha256` of the arrays, where they are known
    file: str | None = None  # SHA-256 of the npz file that the book was made with


def _labelled(image, n_train, n_test):
    return {
        "x_train": ("|u1", (n_train, *image)), "y_train": ("|u1", (n_train,)),
        "x_test": ("|u1", (n_test, *image)), "y_test": ("|u1", (n_test,)),
    }  # fmt: skip


SOURCES = {
    # Pixels 0 to 16; no official split, so `digits` sets n_test of them aside
    "digits": Source(
        {"x": ("|u1", (1_797, 8, 8)), "y": ("|u1", (1_797,))}, 10, 300, 300,
        "d293d9fbc69312f17985933f8e6f9e297108e1efb2ee175c697d242565d3184a",
    ),
    "mnist": Source(
        _labelled((28, 28), 60_000, 10_000), 10, 10_000, 10_000,
        "2a5ae2d5b36ee241414d03115e8aada55a4b90046b8e3d1b1e9c2c7d7920cce8",
        "06af5dfe73b70e3bc1c36439982b18a8d76803db9b544f6fdf838a37fbb01b64",
    ),
    "fashion_mnist": Source(
        _labelled((28, 28), 60_000, 10_000), 10, 10_000, 10_000,
        "d33f89ac1c7b2634d0f22359e86485979ff0b82be3b590d0b19ffca91fa9e2aa",
        "5b6d2c4c694a91887af8ab7d039c04f80af3c29378d731c93a538d2e831aa469",
    ),
    # Labels 1 to 26; class 0 is never used, as in the thesis' network with 27 outputs
    "emnist_letters": Source(_labelled((28, 28), 124_800, 20_800), 27, 20_800, 20_800),
    # Copies with fewer than the 10,000 official test images exist, so that length is free
    "cifar10": Source(
        _labelled((32, 32, 3), 50_000, None), 10, 10_000, 10_000,
        "ce23a5671a5c55509b74bea9f0f5971b2834484319b37c76e0e2d7c5b60ec8ea",
        "dc4bd2a3b6c37baaeda883ce909612c4318fde40b9ff67f881d1f9c10cde35a4",
    ),
    "svhn": Source(_labelled((32, 32, 3), 73_257, 26_032), 10, 10_000, 26_032),
    "omniglot": Source(
        {
            "x": ("|u1", (1623, 20, 28, 28)), "alphabet_id": ("|u1", (1623,)),
            "alphabet_names": ("<U41", (50,)), "character": ("|u1", (1623,)),
            "evaluation": ("|u1", (1623,)), "char_number": ("<u2", (1623,)),
        },
        1_623, 0, 0,
        "541ce917c556b6fb6b1876ff3ce2f98b9a18097eca3291ef12a78afcd898883f",
        "f50673ad16e9c7848f30e6879176aaa7f7f8eda977be24e368ff972904ee2bc6",
    ),
}  # fmt: skip


def problem(name, found):
    """What is wrong with these arrays as data set `name`, in words; None if they fit SOURCES."""
    for key, (dtype, shape) in SOURCES[name].arrays.items():
        if key not in found:
            return f"the array {key} is missing"
        array = found[key]
        if array.dtype.str != dtype:
            return f"{key} has dtype {array.dtype}, expected {np.dtype(dtype)}"
        if array.ndim != len(shape) or any(
            want not in (None, length) for want, length in zip(shape, array.shape, strict=True)
        ):
            return f"{key} has shape {array.shape}, expected {shape}"
    if "y_test" in found and len(found["x_test"]) != len(found["y_test"]):
        return f"there are {len(found['x_test'])} test images but {len(found['y_test'])} labels"
    for key in ("y", "y_train", "y_test"):
        if key in found and len(found[key]) and found[key].max() >= SOURCES[name].n_classes:
            return (
                f"{key} holds {found[key].max()}, the labels are 0 to {SOURCES[name].n_classes - 1}"
            )
    return None


def content_sha256(name, found):
    """SHA-256 over the data set's name and its arrays: the same for any archive that holds them.

    The name is in it so that a file under another set's name is noticed. `problem` must be None.
    """
    digest = hashlib.sha256(name.encode())
    for key in sorted(SOURCES[name].arrays):
        array = np.ascontiguousarray(found[key])
        digest.update(f"{key} {array.dtype.str} {array.shape}".encode())
        digest.update(array)
    return digest.hexdigest()


def wrong_sum(name, found):
    """The same for the checksum: neither the known one nor the one that the file carries."""
    total = content_sha256(name, found)
    if total in (SOURCES[name].content, str(found.get(STORED_SUM))):
        return None
    return f"wrong checksum: the content gives {total[:16]}..., which is not that of {name}"


def command(name, path):
    """What to run, on a machine with network, to make this file."""
    return f"python -m learnopt.datasets fetch {name} --root {shlex.quote(str(path.parent))}"


def read(name, path):
    """The arrays of a data file, by name, after every check. Raises DatasetError."""
    try:
        found = npz.read(path, MAX_BYTES)
    except ValueError as error:
        wrong = str(error)
        raise DatasetError(f"{path}: {wrong}. Delete it and run: {command(name, path)}") from error
    wrong = problem(name, found) or wrong_sum(name, found)
    if wrong:
        raise DatasetError(f"{path}: {wrong}. Delete it and run: {command(name, path)}")
    return found


def digits():
    """The 1,797 digits that come with scikit-learn, pixels 0 to 16, as train and test arrays.

    Raises DatasetError where they are not those that this book knows.
    """
    from sklearn.datasets import load_digits  # takes a second: only who asks for it waits

    x, y = load_digits(return_X_y=True)
    found = {"x": x.reshape(-1, 8, 8).astype(np.uint8), "y": y.astype(np.uint8)}
    wrong = problem("digits", found) or wrong_sum("digits", found)
    if wrong:
        raise DatasetError(f"scikit-learn's digits: {wrong}. Install it again")
    x, y = found["x"], found["y"]
    train, test = set_aside(y, SOURCES["digits"].n_test)
    return {"x_train": x[train], "y_train": y[train], "x_test": x[test], "y_test": y[test]}


def set_aside(y, n):
    """Split indices of y (N,) into the rest (N - n,) and a sample (n,), both ascending.

    The images are ordered by class and, inside a class, by a fixed random key; every (N / n)-th
    is taken. So each class is drawn in proportion, to within one image.
    """
    # The raw output of a bit generator is what NumPy promises never to change
    keys = np.random.PCG64(0).random_raw(len(y))
    order = np.lexsort((keys, y))
    taken = np.zeros(len(y), bool)
    taken[order[(2 * np.arange(n) + 1) * len(y) // max(2 * n, 1)]] = True
    return np.flatnonzero(~taken), np.flatnonzero(taken)


def arrays(name, folder):
    """Download the data set into `folder` and return its arrays by name, uint8.

    Labelled sets: x_train (N, H, W[, C]), y_train (N,), x_test, y_test. Omniglot: see `_omniglot`.
    Needs the network. Raises what torchvision raises: OSError, RuntimeError (wrong MD5, no mirror).
    """
    # Imported here: it takes a second, and whoever has the files does not need it
    from torchvision import datasets as published

    if name == "omniglot":
        return _omniglot(
            published.Omniglot(folder, background=background, download=True).target_folder
            for background in (True, False)
        )
    classes = {
        "mnist": published.MNIST,
        "fashion_mnist": published.FashionMNIST,
        "emnist_letters": partial(published.EMNIST, split="letters"),
        "cifar10": published.CIFAR10,
        "svhn": published.SVHN,
    }
    found = {}
    for part in ("train", "test"):
        which = {"split": part} if name == "svhn" else {"train": part == "train"}
        source = classes[name](folder, download=True, **which)
        labels = source.labels if name == "svhn" else source.targets
        found[f"x_{part}"] = np.ascontiguousarray(_images(name, np.asarray(source.data)))
        found[f"y_{part}"] = np.asarray(labels).astype(np.uint8)
    return found


def _images(name, x):
    """Upright, channels last."""
    if name == "emnist_letters":
        return x.transpose(0, 2, 1)
    return x.transpose(0, 2, 3, 1) if name == "svhn" else x


def _omniglot(folders):
    """Read the two splits, each <folder>/<alphabet>/character<NN>/<number>_<drawing>.png.

    x (1623, 20, 28, 28); per character: alphabet_id (index into alphabet_names), character (its
    number inside the alphabet, from 1), evaluation (0 background, 1 evaluation split),
    char_number (the number in the file names). Sorted by split, alphabet, character, drawing.
    """
    alphabet_names, characters, drawings = [], [], []
    for evaluation, folder in enumerate(folders):
        for alphabet in sorted(path for path in Path(folder).iterdir() if path.is_dir()):
            for character in sorted(path for path in alphabet.iterdir() if path.is_dir()):
                files = sorted(character.glob("*.png"))
                number = int(character.name.removeprefix("character"))
                file_number = int(files[0].name.split("_")[0])
                characters.append((len(alphabet_names), number, evaluation, file_number))
                drawings.append(np.stack([_small(file) for file in files]))
            alphabet_names.append(alphabet.name)
    alphabet_id, character, evaluation, char_number = np.array(characters).T
    return {
        "x": np.stack(drawings),
        "alphabet_id": alphabet_id.astype(np.uint8),
        "alphabet_names": np.array(alphabet_names),
        "character": character.astype(np.uint8),
        "evaluation": evaluation.astype(np.uint8),
        "char_number": char_number.astype(np.uint16),
    }


def _small(file):
    from PIL import Image

    with Image.open(file) as drawing:
        small = drawing.convert("L").resize((OMNIGLOT_SIDE,) * 2, Image.Resampling.LANCZOS)
    return 255 - np.asarray(small)
