"""Curves as bytes: what goes in comes out, and what is no curve is refused by name."""

import io
import zipfile

import numpy as np
import pytest
import torch

from learnopt import curves, npz


@pytest.mark.parametrize(
    "values",
    [
        [1.0, 2.5],
        np.array([[1, 2], [3, 4]]),
        torch.tensor([0.5, 1.5], dtype=torch.bfloat16, requires_grad=True),
        torch.tensor(3.0, dtype=torch.float64),
        [True, False],
        [],
    ],
    ids=["list", "integers", "bfloat16", "a number", "truth values", "empty"],
)
def test_numbers_of_any_kind_and_shape_come_back_in_single_precision(values):
    found = curves.unpack(curves.pack({"loss": values}), ["loss"])["loss"]
    wanted = values.detach().double().numpy() if isinstance(values, torch.Tensor) else values
    assert found.dtype == np.float32 and found.shape == np.shape(wanted)
    assert np.array_equal(found, wanted)


def test_the_same_curves_give_the_same_bytes():
    assert curves.pack({"loss": [1.0]}) == curves.pack({"loss": torch.ones(1)})


@pytest.mark.parametrize("kind", [list, np.array, lambda x: torch.tensor(x, dtype=torch.float64)])
def test_what_single_precision_cannot_hold_becomes_inf(kind):
    found = curves.unpack(curves.pack({"loss": kind([1e39, -1e39, 1.0])}), ["loss"])["loss"]
    assert found.tolist() == [np.inf, -np.inf, 1.0]


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("loss", torch.ones(2, dtype=torch.complex64), "'loss' has the type complex64; real"),
        ("loss", ["1"], "real numbers only"),
        ("loss", [[1.0], [1.0, 2.0]], "'loss' is no array"),
        ("my loss", [1.0], "'my loss': letters, digits and _ only"),
        ("2", [1.0], "letters, digits and _ only"),
        (2, [1.0], "letters, digits and _ only"),
    ],
)
def test_what_is_no_curve_is_refused_by_name(name, values, message):
    with pytest.raises(ValueError, match=message):
        curves.pack({name: values})


def test_curves_that_would_fill_the_memory_are_refused(monkeypatch):
    monkeypatch.setattr(curves, "MAX_BYTES", 40)
    packed = curves.pack({"loss": torch.ones(5), "rate": torch.ones(5)})
    with pytest.raises(ValueError, match="more than 40 bytes; store fewer points"):
        curves.pack({"loss": torch.ones(5), "rate": torch.ones(6)})
    monkeypatch.setattr(curves, "MAX_BYTES", 4)
    with pytest.raises(ValueError, match="not a file of curves"):
        curves.unpack(packed, ["loss", "rate"])


def test_arrays_are_read_up_to_the_limit_of_all_of_them_together():
    packed = curves.pack({"loss": torch.ones(50), "rate": torch.ones(50)})
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        n_bytes = sum(member.file_size for member in archive.infolist())
    assert npz.read(packed, n_bytes).keys() == {"loss", "rate"}
    with pytest.raises(ValueError, match=f"unpacks to {n_bytes} bytes, more than {n_bytes - 1}"):
        npz.read(packed, n_bytes - 1)


def test_a_member_that_is_no_array_is_refused_by_name():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("loss", "1.0")
    with pytest.raises(ValueError, match="'loss' is no array"):
        curves.unpack(buffer.getvalue(), ["loss"])


def test_a_file_of_other_names_or_kinds_is_refused():
    packed = curves.pack({"loss": [1.0]})
    with pytest.raises(ValueError, match=r"holds \['loss'\], not the float32 arrays \['rate'\]"):
        curves.unpack(packed, ["rate"])
