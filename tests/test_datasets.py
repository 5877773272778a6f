"""Data sets: every loader without network, every bad file, and the real files where they are."""

import errno
import gzip
import hashlib
import io
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from learnopt import datasets, download, provenance, seeding
from learnopt.datasets import DatasetError

ROOT = Path(__file__).parents[1]
REAL_DATA = os.environ.get("LEARNOPT_DATA")
N_TRAIN, N_TEST, N_VALID = 50, 20, 10  # of the small data sets that these tests make
LABELLED = ["mnist", "fashion_mnist", "emnist_letters", "cifar10", "svhn"]


@pytest.fixture(autouse=True)
def no_settings_from_the_shell(monkeypatch):
    monkeypatch.delenv("LEARNOPT_DATA", raising=False)


@pytest.fixture
def small(monkeypatch):
    """Shrink the expected sizes, so that the tests' own files are what SOURCES asks for."""
    sources = dict(download.SOURCES)
    for name in LABELLED:
        image = sources[name].arrays["x_train"][1][1:]
        n_test = None if name == "cifar10" else N_TEST
        sources[name] = sources[name]._replace(
            arrays=download._labelled(image, N_TRAIN, n_test), n_valid=N_VALID, n_test=N_TEST
        )
    lengths = {"x": (3, 2, 28, 28), "alphabet_names": (2,)}
    arrays = {
        key: (dtype, lengths.get(key, (3,)))
        for key, (dtype, _) in sources["omniglot"].arrays.items()
    }
    arrays["alphabet_names"] = ("<U5", (2,))
    sources["omniglot"] = sources["omniglot"]._replace(arrays=arrays)
    monkeypatch.setattr(download, "SOURCES", sources)


def labelled_arrays(name="mnist", n_test=N_TEST, seed=0):
    """Random images and labels; every class occurs, no two images are equal."""
    random = np.random.default_rng(seed)
    image = download.SOURCES[name].arrays["x_train"][1][1:]
    found = {}
    for part, n in (("train", N_TRAIN), ("test", n_test)):
        found[f"x_{part}"] = random.integers(0, 256, (n, *image), dtype=np.uint8)
        found[f"y_{part}"] = (np.arange(n) % 10).astype(np.uint8)
    return found


# --- files in the publishers' formats -----------------------------------------------------------


def idx(array):
    """The format of the MNIST family: magic, lengths, bytes; then gzip."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.tobytes())


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    return buffer.getvalue()


def publish_mnist(found, published, monkeypatch, name):
    names = ["train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"]
    keys = ["x_train", "y_train", "x_test", "y_test"]
    files = {f"{n}-ubyte.gz": idx(found[key]) for n, key in zip(names, keys, strict=True)}
    monkeypatch.setattr(
        getattr(published, "MNIST" if name == "mnist" else "FashionMNIST"),
        "resources",
        [(file, md5(content)) for file, content in files.items()],
    )
    return files


def publish_emnist(found, published, monkeypatch, name):
    files = {}
    for part in ("train", "test"):
        stem = f"gzip/emnist-letters-{part}"
        files[f"{stem}-images-idx3-ubyte.gz"] = idx(found[f"x_{part}"].transpose(0, 2, 1))
        files[f"{stem}-labels-idx1-ubyte.gz"] = idx(found[f"y_{part}"])
    archive = zipped(files)
    monkeypatch.setattr(published.EMNIST, "md5", md5(archive))
    return {"gzip.zip": archive}


def publish_cifar10(found, published, monkeypatch, name):
    entries = {"batches.meta": {"label_names": [str(c) for c in range(10)]}}
    parts = [("test_batch", found["x_test"], found["y_test"])]
    for i in range(5):
        rows = slice(i * N_TRAIN // 5, (i + 1) * N_TRAIN // 5)
        parts.append((f"data_batch_{i + 1}", found["x_train"][rows], found["y_train"][rows]))
    for file, x, y in parts:
        entries[file] = {"data": x.transpose(0, 3, 1, 2).reshape(len(x), -1), "labels": y.tolist()}
    files = {file: pickle.dumps(entry) for file, entry in entries.items()}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for file, content in files.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{file}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    sums = [[file, md5(files[file])] for file in sorted(files) if file.startswith("data_batch")]
    monkeypatch.setattr(published.CIFAR10, "train_list", sums)
    monkeypatch.setattr(published.CIFAR10, "test_list", [["test_batch", md5(files["test_batch"])]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": md5(files["batches.meta"])}
    monkeypatch.setattr(published.CIFAR10, "meta", meta)
    monkeypatch.setattr(published.CIFAR10, "tgz_md5", md5(buffer.getvalue()))
    return {"cifar-10-python.tar.gz": buffer.getvalue()}


def publish_svhn(found, published, monkeypatch, name):
    import scipy.io

    files, sums = {}, {}
    for part in ("train", "test"):
        labels = np.where(found[f"y_{part}"] == 0, 10, found[f"y_{part}"])  # SVHN writes 0 as 10
        buffer = io.BytesIO()
        scipy.io.savemat(
            buffer, {"X": found[f"x_{part}"].transpose(1, 2, 3, 0), "y": labels[:, None]}
        )
        file = f"{part}_32x32.mat"
        files[file] = buffer.getvalue()
        sums[part] = [f"http://publisher/{file}", file, md5(files[file])]
    monkeypatch.setattr(published.SVHN, "split_list", sums)
    return files


def publish_omniglot(drawings, published, monkeypatch):
    """drawings: {path without split: (105, 105) bool array, True where there is ink}."""
    files = {}
    for path, ink in drawings.items():
        buffer = io.BytesIO()
        Image.fromarray(~ink).save(buffer, "png")
        files[path] = buffer.getvalue()
    archives = {}
    for split in ("images_background", "images_evaluation"):
        chosen = {path: content for path, content in files.items() if path.startswith(split)}
        archives[f"{split}.zip"] = zipped(chosen)
    sums = {file.removesuffix(".zip"): md5(content) for file, content in archives.items()}
    monkeypatch.setattr(published.Omniglot, "zips_md5", sums)
    return archives


PUBLISH = {
    "mnist": publish_mnist,
    "fashion_mnist": publish_mnist,
    "emnist_letters": publish_emnist,
    "cifar10": publish_cifar10,
    "svhn": publish_svhn,
}


def md5(content):
    return hashlib.md5(content).hexdigest()


def serve(monkeypatch, files):
    """Answer every request for .../<file> with these bytes; returns the list of requests."""
    asked = []

    def urlopen(request, *_, **__):
        file = request.full_url.rsplit("/", 1)[1]
        asked.append(file)
        if file not in files:
            raise urllib.error.URLError("no route to host")
        response = io.BytesIO(files[file])
        response.url, response.length = None, len(files[file])
        return response

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return asked


# --- every loader -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Python 3.14 will:DeprecationWarning")  # torchvision's tarfile
@pytest.mark.parametrize("name", LABELLED)
def test_a_missing_set_is_fetched_once_and_then_read_from_the_cache(
    name, small, tmp_path, monkeypatch
):
    from torchvision import datasets as published

    found = labelled_arrays(name)
    asked = serve(monkeypatch, PUBLISH[name](found, published, monkeypatch, name))

    first = datasets.load(name, root=tmp_path, n_valid=0)
    assert os.listdir(tmp_path) == [f"{name}.npz"]  # the downloads are gone
    n_asked = len(asked)
    second = datasets.load(name, root=tmp_path, n_valid=0)

    assert len(asked) == n_asked > 0
    for data in (first, second):
        for part in ("train", "test"):
            x, y = getattr(data, f"x_{part}"), getattr(data, f"y_{part}")
            expected = torch.from_numpy(found[f"x_{part}"]).float() / 255
            expected = expected.movedim(-1, 1) if expected.dim() == 4 else expected
            torch.testing.assert_close(x, expected, rtol=0, atol=0)
            assert x.is_contiguous() and y.dtype == torch.int64
            assert y.tolist() == found[f"y_{part}"].tolist()


def test_omniglot_is_fetched_reduced_and_sorted(small, tmp_path, monkeypatch):
    from torchvision import datasets as published

    ink = np.zeros((105, 105), bool)
    ink[30:75, 45:60] = True
    drawings = {
        "images_background/Greek/character02/0002_01.png": ink.T,
        "images_background/Greek/character02/0002_02.png": ink.T,
        "images_background/Greek/character01/0001_01.png": ink,
        "images_background/Greek/character01/0001_02.png": ~ink,
        "images_evaluation/Angel/character01/0007_01.png": ink,
        "images_evaluation/Angel/character01/0007_02.png": ink,
    }
    serve(monkeypatch, publish_omniglot(drawings, published, monkeypatch))

    data = datasets.load("omniglot", root=tmp_path)

    assert data.background.shape == (2, 2, 28, 28) and data.evaluation.shape == (1, 2, 28, 28)
    assert data.alphabet_names == ("Greek", "Angel")
    assert data.background_alphabet.tolist() == [0, 0] and data.evaluation_alphabet.tolist() == [1]
    # Ink is 1, paper 0, and the share of ink survives the reduction
    assert data.background[0, 0, 14, 14] == 1 and data.background[0, 0, 0, 0] == 0
    assert data.background[0, 0].mean().item() == pytest.approx(ink.mean(), abs=0.01)
    # The filter rounds to 8 bits after its first direction, hence a few 1/255
    close = {"rtol": 0, "atol": 5 / 255}
    torch.testing.assert_close(data.background[1, 0], data.background[0, 0].T, **close)
    torch.testing.assert_close(data.background[0, 1], 1 - data.background[0, 0], **close)
    stored = download.read("omniglot", tmp_path / "omniglot.npz")
    assert stored["char_number"].tolist() == [1, 2, 7] and stored["character"].tolist() == [1, 2, 1]


def test_digits_need_no_file_and_no_network(monkeypatch, tmp_path):
    serve(monkeypatch, {})
    data = datasets.load("digits", root=tmp_path / "does-not-exist")

    assert [len(data.x_train), len(data.x_valid), len(data.x_test)] == [1197, 300, 300]
    assert data.x_train.shape[1:] == (8, 8) and data.n_classes == 10
    everything = torch.cat([data.x_train, data.x_valid, data.x_test])
    assert everything.min() == 0 and everything.max() == 1
    assert len(everything.flatten(1).unique(dim=0)) == 1797  # no image is in two parts
    for labels in (data.y_train, data.y_valid, data.y_test):
        assert (labels.bincount() / len(labels)).sub(0.1).abs().max() < 0.005


def test_the_split_of_digits_is_the_same_on_every_machine():
    data = datasets.load("digits")
    parts = [(x * 16).to(torch.uint8).numpy() for x in (data.x_train, data.x_valid, data.x_test)]
    digests = [hashlib.sha256(part.tobytes()).hexdigest()[:16] for part in parts]
    assert digests == ["31ea88d7480c92fb", "9086827b50051836", "1d3dc1f0da1d7e79"]


# --- EMNIST Letters and SVHN, which the book was made without ------------------------------------


def fetched(name, found, root, monkeypatch):
    """Load a set that is served in the publisher's format."""
    from torchvision import datasets as published

    serve(monkeypatch, PUBLISH[name](found, published, monkeypatch, name))
    return datasets.load(name, root=root, n_valid=0)


def test_the_letters_of_emnist_stand_upright(small, tmp_path, monkeypatch):
    # An L, upright: a stroke down on the left, a foot to the right at the bottom.
    found = labelled_arrays("emnist_letters")
    found["x_train"][0] = 0
    found["x_train"][0, 4:24, 6] = 255
    found["x_train"][0, 23, 6:20] = 255
    raw = gzip.decompress(idx(found["x_train"].transpose(0, 2, 1)))[16 : 16 + 28 * 28]
    assert raw[6 * 28 + 4] == 255 and raw[4 * 28 + 10] == 0  # as published: rows are columns

    letter = fetched("emnist_letters", found, tmp_path, monkeypatch).x_train[0]

    assert letter[4:24, 6].eq(1).all() and letter[23, 6:20].eq(1).all()
    assert letter.sum() == 20 + 14 - 1


def test_the_letters_are_classes_1_to_26_of_27(small, tmp_path, monkeypatch):
    found = labelled_arrays("emnist_letters")
    for part in ("train", "test"):
        found[f"y_{part}"] = (1 + np.arange(len(found[f"y_{part}"])) % 26).astype(np.uint8)

    data = fetched("emnist_letters", found, tmp_path, monkeypatch)

    assert data.n_classes == 27  # as in the thesis' network; output 0 is never asked for
    assert data.y_train.unique().tolist() == list(range(1, 27))
    found["y_train"][0] = 27
    with pytest.raises(DatasetError, match="y_train holds 27, the labels are 0 to 26"):
        datasets.write("emnist_letters", tmp_path / "other.npz", found)


def test_svhn_keeps_its_colours_its_order_and_the_digit_that_it_writes_as_10(
    small, tmp_path, monkeypatch
):
    found = labelled_arrays("svhn")
    found["x_train"][0] = 0
    found["x_train"][0, 2, 30] = (255, 51, 0)  # row 2, column 30: red, a little green
    assert 0 in found["y_train"]  # the publisher's file says 10 there

    data = fetched("svhn", found, tmp_path, monkeypatch)

    assert data.x_train.shape == (N_TRAIN, 3, 32, 32) and data.n_classes == 10
    torch.testing.assert_close(data.x_train[0, :, 2, 30], torch.tensor([1.0, 0.2, 0.0]))
    assert data.x_train[0].count_nonzero() == 2
    assert data.y_train.tolist() == found["y_train"].tolist() and data.y_train.max() == 9
    assert data.y_test.tolist() == found["y_test"].tolist()


@pytest.mark.parametrize(("name", "n_classes"), [("emnist_letters", 27), ("svhn", 10)])
def test_the_validation_images_of_both_come_from_the_training_set(name, n_classes, small, tmp_path):
    found = labelled_arrays(name)
    datasets.write(name, tmp_path / f"{name}.npz", found)
    data = datasets.load(name, root=tmp_path)

    sizes = [len(part) for part in (data.x_train, data.x_valid, data.x_test)]
    assert sizes == [N_TRAIN - N_VALID, N_VALID, N_TEST] and data.n_classes == n_classes
    kept = torch.cat([data.x_train, data.x_valid]).flatten(1)
    official = torch.from_numpy(found["x_train"]).flatten(1)
    if name == "emnist_letters":  # one channel: the pixels keep their places
        assert sorted(map(tuple, (kept * 255).round().byte().tolist())) == sorted(
            map(tuple, official.tolist())
        )
    assert len(torch.cat([kept, data.x_test.flatten(1)]).unique(dim=0)) == N_TRAIN + N_TEST


@pytest.mark.parametrize(
    ("problem", "name", "n_parameters"),
    [("emnist-letters", "emnist_letters", 16_267), ("svhn", "svhn", 61_670)],  # of the thesis
)
def test_chapter_05_takes_both_sets(problem, name, n_parameters, small, tmp_path, monkeypatch):
    monkeypatch.setitem(
        download.SOURCES,
        name,
        download.SOURCES[name]._replace(
            arrays=download._labelled(download.SOURCES[name].arrays["x_train"][1][1:], 300, N_TEST)
        ),
    )
    found = labelled_arrays(name)
    repeated = {f"{k}_train": np.tile(found[f"{k}_train"], (6,) + (1,) * n)
                for k, n in (("x", found["x_train"].ndim - 1), ("y", 0))}  # fmt: skip
    datasets.write(name, tmp_path / f"{name}.npz", found | repeated)
    monkeypatch.setenv("LEARNOPT_DATA", str(tmp_path))
    notebook = json.loads((ROOT / "notebooks" / "05_transfer.ipynb").read_text())
    source = {cell["id"]: "".join(cell["source"]) for cell in notebook["cells"]}

    chapter = {}
    for cell in ("imports", "parameters", "load", "problems", "thesis-rates", "study"):
        exec(source[cell], chapter)
    chapter |= {"n_test": 1, "n_tuning": 1}
    task, x_test, y_test = chapter["problem"](problem)
    ours = chapter["race"](problem, None)

    assert task.layout.size == ours["n"] == n_parameters
    assert len(x_test) == len(y_test) == N_TEST
    losses = ours["losses"]["LSTM"]
    start = np.log(27 if name == "emnist_letters" else 10)  # of guessing, with weights near 0
    assert losses.shape == (1, 200) and losses.isfinite().all()
    assert losses[0, 0].item() == pytest.approx(start, abs=0.01)


# --- splits -------------------------------------------------------------------------------------


def test_the_validation_sample_is_fixed_disjoint_and_in_proportion():
    y = np.repeat([3, 0, 7], [500, 300, 11])
    rest, taken = download.set_aside(y, 200)

    assert sorted([*rest, *taken]) == list(range(811))
    assert (np.diff(rest) > 0).all() and (np.diff(taken) > 0).all()  # official order is kept
    for label, n in ((3, 500), (0, 300), (7, 11)):
        assert abs((y[taken] == label).sum() - 200 * n / 811) < 1
    assert not np.array_equal(taken, np.arange(200) * 811 // 200)  # inside a class it is random
    assert hashlib.sha256(taken.astype("<i8").tobytes()).hexdigest()[:16] == "e9f871a2496b1caf"
    assert download.set_aside(y, 0)[1].size == 0


def test_train_validation_and_test_share_no_image(small, tmp_path):
    found = labelled_arrays()
    datasets.write("mnist", tmp_path / "mnist.npz", found)
    data = datasets.load("mnist", root=tmp_path)

    assert [len(data.x_train), len(data.x_valid), len(data.x_test)] == [40, 10, 20]
    assert data.y_valid.bincount().tolist() == [1] * 10
    images = torch.cat([data.x_train, data.x_valid, data.x_test]).flatten(1)
    assert len(images.unique(dim=0)) == 70
    assert "official test images" in data.note and "10 training images" in data.note


@pytest.mark.parametrize("hold_out", [0, 7])
def test_an_image_keeps_its_label_whichever_part_it_goes_to(hold_out, small, tmp_path):
    found = labelled_arrays()
    for part in ("train", "test"):
        found[f"x_{part}"][:, 0, 0] = found[f"y_{part}"]
    datasets.write("mnist", tmp_path / "mnist.npz", found)
    data = datasets.load("mnist", root=tmp_path, hold_out=hold_out)
    for x, y in (data[1:3], data[3:5], data[5:7]):
        assert (x[:, 0, 0] * 255).round().tolist() == y.tolist()


def test_cifar10_with_too_few_test_images_holds_out_the_last_training_images(small, tmp_path):
    found = labelled_arrays("cifar10", n_test=3)
    datasets.write("cifar10", tmp_path / "cifar10.npz", found)
    data = datasets.load("cifar10", root=tmp_path)

    assert [len(data.x_train), len(data.x_valid), len(data.x_test)] == [20, 10, 20]
    held_out = torch.from_numpy(found["x_train"][-20:]).movedim(-1, 1) / 255
    torch.testing.assert_close(data.x_test, held_out)
    assert "last 20 training images, not the official test images" in data.note


def test_a_whole_cifar10_can_be_split_like_one_with_too_few_test_images(small, tmp_path):
    short, whole = labelled_arrays("cifar10", n_test=3), labelled_arrays("cifar10")
    whole |= {key: short[key] for key in ("x_train", "y_train")}
    datasets.write("cifar10", tmp_path / "short" / "cifar10.npz", short)
    datasets.write("cifar10", tmp_path / "whole" / "cifar10.npz", whole)

    a = datasets.load("cifar10", root=tmp_path / "short")
    b = datasets.load("cifar10", root=tmp_path / "whole", hold_out=N_TEST)
    official = datasets.load("cifar10", root=tmp_path / "whole")

    assert all(here.equal(there) for here, there in zip(a[1:7], b[1:7], strict=True))
    assert a.note == b.note != official.note
    torch.testing.assert_close(
        official.x_test, torch.from_numpy(whole["x_test"]).movedim(-1, 1) / 255
    )


@pytest.mark.parametrize(
    "wrong", [{"n_valid": -1}, {"n_valid": 1497}, {"hold_out": -1}, {"hold_out": 1497}]
)
def test_a_split_that_leaves_no_training_images_is_refused(wrong):
    with pytest.raises(DatasetError, match=f"{next(iter(wrong))}=.* must be 0 to 1496"):
        datasets.load("digits", **wrong)


def test_split_gives_disjoint_random_halves():
    first, second = datasets.split(1001, (500, 501), seeding.generator(0, "halves"))
    again, _ = datasets.split(1001, (500, 501), seeding.generator(0, "halves"))

    assert sorted([*first.tolist(), *second.tolist()]) == list(range(1001))
    assert first.tolist() == again.tolist() != sorted(first.tolist())
    a, b = datasets.split(10, [2, 3], seeding.generator(0, "part"))
    assert len({*a.tolist(), *b.tolist()}) == 5
    with pytest.raises(ValueError, match="need 11 items, there are 10"):
        datasets.split(10, [5, 6], seeding.generator(0, "halves"))


# --- files that must be refused -----------------------------------------------------------------


class Payload:
    """Unpickling this makes a file: proof that nobody did."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def damage(kind, path):
    """Write a mnist.npz that is wrong in one way."""
    good = labelled_arrays()
    datasets.write("mnist", path, good)
    content = path.read_bytes()
    with np.load(path) as archive:
        stored = {key: archive[key] for key in archive.files}
    if kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "one byte flipped":
        middle = len(content) // 4  # inside the compressed training images
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "web page":
        path.write_text("<html>404</html>")
    elif kind == "bare array":
        with open(path, "wb") as file:
            np.save(file, good["x_train"])
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "other set":
        datasets.write("fashion_mnist", path, good)
    elif kind == "missing array":
        np.savez(path, **{key: stored[key] for key in stored if key != "y_test"})
    elif kind == "too few labels":
        np.savez(path, **stored | {"y_test": stored["y_test"][:-1]})
    elif kind == "float images":
        np.savez(path, **stored | {"x_train": stored["x_train"] / np.float32(255)})
    elif kind == "flat images":
        np.savez(path, **stored | {"x_train": stored["x_train"].reshape(N_TRAIN, -1)})
    elif kind == "wrong checksum":
        np.savez(path, **stored | {"y_train": stored["y_train"][::-1]})
    elif kind == "no checksum":
        np.savez(path, **good)
    elif kind == "pickle":
        payload = np.array([Payload(path.parent / "unpickled")], dtype=object)
        np.savez(path, **stored | {"y_train": payload})


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("truncated", "not a readable npz file, perhaps cut short"),
        ("one byte flipped", "not a readable npz file"),
        ("empty", "not a readable npz file"),
        ("web page", "not a readable npz file"),
        ("bare array", "not a readable npz file"),
        ("folder", "not a readable npz file"),
        ("pickle", "Object arrays cannot be loaded"),
        ("missing array", "the array y_test is missing"),
        ("too few labels", r"y_test has shape \(19,\), expected \(20,\)"),
        ("float images", "x_train has dtype float32, expected uint8"),
        ("flat images", r"x_train has shape \(50, 784\), expected \(50, 28, 28\)"),
        ("wrong checksum", "wrong checksum: .* not that of mnist"),
        ("no checksum", "wrong checksum: .* not that of mnist"),
        ("other set", "wrong checksum: .* not that of mnist"),
    ],
)
def test_a_bad_file_is_refused_with_what_is_wrong_and_what_to_do(
    kind, words, small, tmp_path, monkeypatch
):
    asked = serve(monkeypatch, {})
    path = tmp_path / "mnist.npz"
    damage(kind, path)
    before = path.stat()

    with pytest.raises(DatasetError, match=words) as caught:
        datasets.load("mnist", root=tmp_path)

    assert str(path) in str(caught.value)
    advice = f"Delete it and run: python -m learnopt.datasets fetch mnist --root {tmp_path}"
    assert advice in str(caught.value)
    assert asked == []  # nothing is fetched in its place
    assert path.stat().st_mtime_ns == before.st_mtime_ns  # and it is left for its owner to look at
    assert not (tmp_path / "unpickled").exists()


def test_a_short_cifar10_test_set_must_have_as_many_labels_as_images(small, tmp_path):
    found = labelled_arrays("cifar10", n_test=3)
    found["y_test"] = found["y_test"][:2]
    with pytest.raises(DatasetError, match="3 test images but 2 labels"):
        datasets.write("cifar10", tmp_path / "cifar10.npz", found)
    assert os.listdir(tmp_path) == []


def test_the_checksum_is_of_the_content_not_of_the_archive(small, tmp_path):
    found = labelled_arrays()
    total = np.array(download.content_sha256("mnist", found))
    np.savez(tmp_path / "mnist.npz", **found, content_sha256=total)  # stored, other order
    assert len(datasets.load("mnist", root=tmp_path).x_test) == N_TEST


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(DatasetError, match="no data set 'mnits'; there are digits, mnist"):
        datasets.load("mnits")


def test_other_digits_than_those_of_the_book_are_refused(monkeypatch):
    source = download.SOURCES["digits"]._replace(content="0" * 64)
    monkeypatch.setitem(download.SOURCES, "digits", source)
    with pytest.raises(DatasetError, match="scikit-learn's digits: wrong checksum"):
        datasets.load("digits")


# --- fetching and writing -----------------------------------------------------------------------


@pytest.mark.parametrize("name", [*LABELLED, "omniglot"])
def test_without_file_and_network_the_error_names_the_file_and_the_command(
    name, tmp_path, monkeypatch
):
    serve(monkeypatch, {})
    with pytest.raises(DatasetError) as caught:
        datasets.load(name, root=tmp_path / "new")

    assert str(tmp_path / "new" / f"{name}.npz") in str(caught.value)
    assert f"python -m learnopt.datasets fetch {name} --root" in str(caught.value)
    assert "no route to host" in str(caught.value)
    assert os.listdir(tmp_path / "new") == []


def test_a_download_with_a_wrong_md5_is_refused(small, tmp_path, monkeypatch):
    from torchvision import datasets as published

    files = publish_mnist(labelled_arrays(), published, monkeypatch, "mnist")
    files["t10k-labels-idx1-ubyte.gz"] = idx(np.zeros(N_TEST, np.uint8))
    serve(monkeypatch, files)
    with pytest.raises(DatasetError, match="not found or corrupted"):
        datasets.load("mnist", root=tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_download_of_another_size_is_not_written(small, tmp_path, monkeypatch):
    from torchvision import datasets as published

    found = labelled_arrays(n_test=N_TEST - 1)
    serve(monkeypatch, publish_mnist(found, published, monkeypatch, "mnist"))
    with pytest.raises(DatasetError, match=r"not written, since x_test has shape \(19, 28, 28\)"):
        datasets.load("mnist", root=tmp_path)
    assert os.listdir(tmp_path) == []


def disk_full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_full_disk_leaves_no_file_and_the_next_try_succeeds(moment, small, tmp_path, monkeypatch):
    found = labelled_arrays()
    monkeypatch.setattr(download, "arrays", lambda name, folder: found)
    with monkeypatch.context() as patch:
        patch.setattr(os, moment, disk_full)
        with pytest.raises(DatasetError, match=r"mnist.npz: not written .*No space left on device"):
            datasets.load("mnist", root=tmp_path)
        assert os.listdir(tmp_path) == []
    assert len(datasets.load("mnist", root=tmp_path).x_test) == N_TEST


def test_a_failed_write_leaves_the_old_file_as_it_was(small, tmp_path, monkeypatch):
    path = tmp_path / "mnist.npz"
    datasets.write("mnist", path, labelled_arrays(seed=0))
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", disk_full)
    with pytest.raises(DatasetError, match="No space left"):
        datasets.write("mnist", path, labelled_arrays(seed=1))
    assert os.listdir(tmp_path) == ["mnist.npz"] and path.read_bytes() == before


def test_an_interrupt_leaves_no_file(small, tmp_path, monkeypatch):
    def interrupt(name, folder):
        (Path(folder) / "half.gz").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "arrays", interrupt)
    with pytest.raises(KeyboardInterrupt):
        datasets.load("mnist", root=tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_killed_write_leaves_nothing_under_the_name_of_the_file(tmp_path):
    program = f"""
import os, signal
import numpy as np
from learnopt import datasets, download
image, labels = np.zeros((60000, 28, 28), np.uint8), np.zeros(60000, np.uint8)
found = dict(x_train=image, y_train=labels, x_test=image[:10000], y_test=labels[:10000])
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
datasets.write("mnist", __import__("pathlib").Path({str(tmp_path)!r}) / "mnist.npz", found)
"""
    run = subprocess.run([sys.executable, "-c", program], timeout=120)
    assert run.returncode == -signal.SIGKILL
    assert not (tmp_path / "mnist.npz").exists()
    assert all(file.startswith(".") and file.endswith(".tmp") for file in os.listdir(tmp_path))


def test_loading_writes_nothing_beside_the_file(small, tmp_path, monkeypatch):
    datasets.write("mnist", tmp_path / "mnist.npz", labelled_arrays())
    before = tmp_path.stat().st_mtime_ns
    tmp_path.chmod(0o555)
    try:
        datasets.load("mnist", root=tmp_path)
    finally:
        tmp_path.chmod(0o755)
    assert os.listdir(tmp_path) == ["mnist.npz"] and tmp_path.stat().st_mtime_ns == before


def test_the_folder_is_the_argument_else_the_variable_else_the_checkout_else_home(
    monkeypatch, tmp_path
):
    checkout = provenance.checkout()
    assert datasets.folder() == checkout / "data" / "cache"
    monkeypatch.setenv("LEARNOPT_DATA", str(tmp_path))
    assert datasets.folder() == tmp_path
    assert datasets.folder("elsewhere") == Path("elsewhere")
    monkeypatch.setenv("LEARNOPT_DATA", "../shared")  # wherever the notebook runs
    assert datasets.folder() == checkout / "../shared"
    monkeypatch.setenv("LEARNOPT_DATA", "")
    monkeypatch.setattr(provenance, "checkout", lambda: None)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert datasets.folder() == tmp_path / ".cache" / "learnopt"


# --- pooling and minibatches --------------------------------------------------------------------


def test_pooling_averages_blocks_of_grey_and_colour_images():
    image = torch.arange(16, dtype=torch.float64).reshape(1, 4, 4)
    assert datasets.pool(image, 2).tolist() == [[[2.5, 4.5], [10.5, 12.5]]]
    assert datasets.pool(image, 1).equal(image)
    colour = torch.rand(5, 3, 12, 8, dtype=torch.float64, generator=seeding.generator(0, "pool"))
    expected = torch.nn.functional.avg_pool2d(colour, 4)
    torch.testing.assert_close(datasets.pool(colour, 4), expected)
    with pytest.raises(ValueError, match=r"\(12, 8\) do not divide into 3 x 3"):
        datasets.pool(colour, 3)


@pytest.fixture
def numbered():
    """300 'images', each holding its own number, and the number as its label."""
    y = torch.arange(300)
    return y.double().reshape(300, 1, 1).expand(300, 2, 2), y


def test_a_pass_holds_every_image_once_and_the_next_is_reshuffled(numbered):
    batches = datasets.minibatches(*numbered, 128, 7, seeding.generator(0, "batches"))

    assert [len(x) for x, _ in batches] == [128, 128, 44, 128, 128, 44, 128]
    for x, y in batches:
        assert x.shape[1:] == (2, 2) and x[:, 0, 0].tolist() == y.tolist()
    first = [label for _, y in batches[:3] for label in y.tolist()]
    second = [label for _, y in batches[3:6] for label in y.tolist()]
    assert sorted(first) == sorted(second) == list(range(300))
    assert first != second and first != sorted(first)


def test_the_thesis_pass_has_235_batches_the_last_of_48():
    y = torch.zeros(30_000, dtype=torch.int64)
    batches = datasets.minibatches(y, y, 128, 235, seeding.generator(0, "batches"))
    assert len(batches[233][0]) == 128 and len(batches[-1][0]) == 48


def test_drop_last_leaves_out_the_short_batch(numbered):
    batches = datasets.minibatches(
        *numbered, 128, 5, seeding.generator(0, "batches"), drop_last=True
    )
    assert [len(y) for _, y in batches] == [128] * 5
    labels = [label for _, y in batches[:2] for label in y.tolist()]
    assert len(set(labels)) == 256


def test_minibatches_are_a_sequence_that_gives_the_same_batches_again(numbered):
    batches = datasets.minibatches(*numbered, 100, 9, seeding.generator(0, "batches"))
    again = datasets.minibatches(*numbered, 100, 9, seeding.generator(0, "batches"))
    other = datasets.minibatches(*numbered, 100, 9, seeding.generator(1, "batches"))

    labels = [y.tolist() for _, y in batches]
    assert labels == [y.tolist() for _, y in batches] == [y.tolist() for _, y in again]
    assert labels != [y.tolist() for _, y in other]
    assert len(batches) == 9 and len(batches[2:4]) == 2
    assert batches[2:4][1][1].tolist() == batches[3][1].tolist() == batches[-6][1].tolist()
    with pytest.raises(IndexError):
        batches[9]


def test_many_batches_hold_indices_not_images(numbered):
    x, y = numbered
    batches = datasets.minibatches(x, y, 100, 3_000, seeding.generator(0, "batches"))
    assert batches.x is x and batches.y is y
    assert sum(index.numel() for index in batches.indices) == 3_000 * 100


@pytest.mark.parametrize(("n_labels", "batch_size"), [(299, 10), (300, 0), (300, 301)])
def test_batches_that_cannot_be_cut_are_refused(numbered, n_labels, batch_size):
    x, y = numbered
    with pytest.raises(ValueError, match="cannot be cut"):
        datasets.minibatches(x, y[:n_labels], batch_size, 1, seeding.generator(0, "batches"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_data_and_batches_live_on_the_device_and_are_the_same_there():
    here, there = datasets.load("digits"), datasets.load("digits", device="cuda")
    a = datasets.minibatches(here.x_train, here.y_train, 64, 30, seeding.generator(0, "batches"))
    b = datasets.minibatches(there.x_train, there.y_train, 64, 30, seeding.generator(0, "batches"))
    for (x, y), (x_there, y_there) in zip(a, b, strict=True):
        assert x_there.device.type == "cuda"
        assert x.equal(x_there.cpu()) and y.equal(y_there.cpu())


# --- the command line ---------------------------------------------------------------------------


def test_the_commands_list_fetch_and_verify(small, tmp_path, monkeypatch, capsys):
    found = labelled_arrays()
    monkeypatch.setattr(download, "arrays", lambda name, folder: found)
    root = ["--root", str(tmp_path)]

    assert datasets.main(["list", *root]) == 0
    assert capsys.readouterr().out.count("missing") == 6
    assert datasets.main(["verify", "mnist", *root]) == 1
    assert "mnist.npz: not there" in capsys.readouterr().err
    assert datasets.main(["fetch", "digits", "mnist", *root]) == 0
    assert "intact" in capsys.readouterr().out
    assert datasets.main(["list", "mnist", *root]) == 0
    assert "present" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        datasets.main(["fetch", *root])  # several GB, which nobody wants by accident
    assert "say which to fetch: digits mnist" in capsys.readouterr().err
    (tmp_path / "svhn.npz").write_bytes(b"")
    assert datasets.main(["verify", *root]) == 1  # but the others are looked at
    shown = capsys.readouterr()
    assert "intact" in shown.out and "svhn.npz: not a readable npz file" in shown.err


def test_the_module_runs_as_a_command():
    run = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-m", "learnopt.datasets", "fetch", "nope"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 1 and "there are digits, mnist" in run.stderr


def test_the_page_on_data_lists_the_checksums_that_the_code_checks():
    page = (provenance.checkout() / "book" / "data.md").read_text()
    for name, source in download.SOURCES.items():
        assert f"`{name}`" in page
        for total in (source.content, source.file):
            assert total is None or f"{name:14} {total}" in page


# --- the real files -----------------------------------------------------------------------------


@pytest.fixture
def real(monkeypatch):
    """Load from the folder that LEARNOPT_DATA named when the tests started."""

    def load(name, **options):
        if not REAL_DATA:
            pytest.skip("LEARNOPT_DATA is not set: no real data sets here")
        monkeypatch.setenv("LEARNOPT_DATA", REAL_DATA)
        if not (datasets.folder() / f"{name}.npz").exists():
            pytest.skip(f"LEARNOPT_DATA has no {name}.npz")
        return datasets.load(name, **options)

    return load


@pytest.mark.parametrize(
    ("name", "mean", "std"), [("mnist", 0.1307, 0.3081), ("fashion_mnist", 0.2860, 0.3530)]
)
def test_the_real_grey_sets_have_their_counts_and_moments(real, name, mean, std):
    data = real(name, n_valid=0)
    assert data.x_train.shape == (60_000, 28, 28) and data.x_test.shape == (10_000, 28, 28)
    assert data.x_valid.shape == (0, 28, 28)
    assert data.x_train.mean().item() == pytest.approx(mean, abs=1e-4)
    assert data.x_train.double().std().item() == pytest.approx(std, abs=1e-4)
    assert data.y_train.unique().tolist() == list(range(10))
    if name == "fashion_mnist":
        assert data.y_train.bincount().tolist() == [6_000] * 10


def test_the_real_mnist_is_split_50_10_10_thousand(real):
    data = real("mnist")
    assert [len(x) for x in (data.y_train, data.y_valid, data.y_test)] == [50_000, 10_000, 10_000]
    share = data.y_train.bincount() / 5 - data.y_valid.bincount()
    assert share.abs().max() <= 1.2  # each class in proportion, to within one image


def test_the_real_cifar10_has_a_test_set_of_10_000(real):
    data = real("cifar10", n_valid=0)
    assert data.x_test.shape == (10_000, 3, 32, 32)
    held_out = "last 10,000 training images" in data.note
    assert len(data.x_train) == (40_000 if held_out else 50_000)
    mean = torch.cat([data.x_train, data.x_test[: 50_000 - len(data.x_train)]]).mean((0, 2, 3))
    torch.testing.assert_close(mean, torch.tensor([0.4914, 0.4822, 0.4465]), rtol=0, atol=1e-4)


def test_the_real_omniglot_has_1623_characters(real):
    data = real("omniglot")
    assert data.background.shape == (964, 20, 28, 28)
    assert data.evaluation.shape == (659, 20, 28, 28)
    assert data.background_alphabet.unique().tolist() == list(range(30))
    assert data.evaluation_alphabet.unique().tolist() == list(range(30, 50))
    assert data.alphabet_names[14] == "Greek" and len(data.alphabet_names) == 50
    assert 0.05 < data.background.mean() < 0.15 and data.background.max() == 1  # ink is high
