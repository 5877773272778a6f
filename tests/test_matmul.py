"""Products are torch's, up to rounding, whichever library makes them."""

import re

import pytest
import torch

from learnopt import matmul
from learnopt.seeding import generator

SHAPES = [(80, 41, 3000), (80, 23, 5312), (41, 80, 3000), (100, 784, 128), (2, 3, 4)]


@pytest.fixture(params=[False, True], ids=["BLAS", "oneDNN"])
def library(request, monkeypatch):
    if request.param and not matmul.HAS_ONEDNN:
        pytest.skip("this torch has no oneDNN, so nothing can choose it")
    monkeypatch.setattr(matmul, "_FASTER", request.param)


def draw(*shape):
    return torch.randn(*shape, generator=generator(0, "product", *shape))


@pytest.mark.parametrize("m, k, n", SHAPES)
def test_a_product_is_that_of_float64_up_to_rounding(library, m, k, n):
    a, b = draw(m, k), draw(k, n)
    exact = (a.double() @ b.double()).float()
    torch.testing.assert_close(matmul.matmul(a, b), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("activation", ["none", "tanh", "sigmoid", "relu"])
@pytest.mark.parametrize("m, k, n", SHAPES)
def test_a_layer_is_that_of_float64_up_to_rounding(library, m, k, n, activation):
    x, weight, bias = draw(m, k), draw(n, k), draw(n)
    exact = torch.addmm(bias.double(), x.double(), weight.double().T)
    exact = exact if activation == "none" else getattr(torch, activation)(exact)
    found = matmul.affine(x, weight, bias, activation)
    torch.testing.assert_close(found, exact.float(), rtol=1e-5, atol=1e-4)


def test_float64_is_always_torchs_own(library):
    a, b = draw(80, 41).double(), draw(41, 3000).double()
    assert torch.equal(matmul.matmul(a, b), a @ b)


def test_oneDNN_is_taken_where_it_is_faster():
    assert not matmul._is_faster("Intel(R) Xeon(R) Processor @ 2.00GHz", "AVX512")
    assert not matmul._is_faster("Apple M3", "DEFAULT")
    assert not matmul._is_faster("AMD EPYC 7B13", "AVX2")
    assert matmul._is_faster("AMD EPYC 9B14", "AVX512") == matmul.HAS_ONEDNN


def test_torch_names_the_instructions_as_the_choice_expects():
    assert re.fullmatch(r"[A-Z0-9_ ]+", torch.backends.cpu.get_cpu_capability())
