"""One flat vector, seen as named tensors and put together again."""

import pytest
import torch

from learnopt.layout import Layout

LAYOUT = Layout({"weight": (3, 2), "bias": (3,), "scale": (), "kernel": (2, 1, 2, 2)})
FLAT = torch.arange(18, dtype=torch.float64)


def test_the_size_is_the_number_of_scalars():
    assert LAYOUT.size == 6 + 3 + 1 + 8


def test_views_have_the_shapes_and_the_order_of_the_layout():
    views = LAYOUT.views(FLAT)
    assert {name: tuple(view.shape) for name, view in views.items()} == LAYOUT.shapes
    assert views["weight"].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert views["bias"].tolist() == [6, 7, 8]
    assert views["scale"].item() == 9
    assert views["kernel"].flatten().tolist() == list(range(10, 18))


@pytest.mark.parametrize("lead", [(), (4,), (4, 5)])
def test_views_keep_leading_axes_and_copy_nothing(lead):
    flat = torch.arange(18.0).expand(*lead, 18).clone()
    before = flat.clone()
    for name, view in LAYOUT.views(flat).items():
        assert view.shape == (*lead, *LAYOUT.shapes[name])
        view += 1  # seen through the flat vector only if the memory is shared
    assert torch.equal(flat, before + 1)


@pytest.mark.parametrize("lead", [(), (4,), (4, 5)])
def test_flatten_is_the_inverse_of_views(lead):
    flat = torch.randn(*lead, 18, generator=torch.Generator().manual_seed(0))
    assert torch.equal(LAYOUT.flatten(LAYOUT.views(flat)), flat)


def test_a_layout_of_scalars_only_works():
    layout = Layout.of({"log_lr": torch.tensor(1.0), "logit_momentum": torch.tensor(2.0)})
    views = layout.views(torch.tensor([3.0, 4.0]))
    assert views["log_lr"].shape == () and views["logit_momentum"].item() == 4
    assert layout.flatten(views).tolist() == [3, 4]


def test_flatten_goes_by_name_not_by_the_order_of_the_dict():
    views = LAYOUT.views(FLAT)
    backwards = dict(reversed(views.items()))
    assert torch.equal(LAYOUT.flatten(backwards), FLAT)


def test_the_layout_of_given_tensors_describes_them():
    assert Layout.of(LAYOUT.views(FLAT)).shapes == LAYOUT.shapes


def test_the_segment_says_which_tensor_each_coordinate_belongs_to():
    assert LAYOUT.segment.tolist() == [0] * 6 + [1] * 3 + [2] + [3] * 8
    per_tensor = torch.tensor([10.0, 20.0, 30.0, 40.0])
    views = LAYOUT.views(per_tensor[LAYOUT.segment])
    for value, view in zip(per_tensor, views.values(), strict=True):
        assert torch.equal(view, value.expand_as(view))


def test_a_layout_of_nothing_is_a_vector_of_length_zero():
    assert Layout({}).size == 0 and Layout({}).segment.tolist() == []
    assert Layout({}).views(torch.zeros(0)) == {}


def test_views_and_flatten_carry_gradients():
    def scored(flat):
        views = LAYOUT.views(flat)
        return (LAYOUT.flatten({name: view**2 for name, view in views.items()})).sum()

    assert torch.equal(torch.func.grad(scored)(FLAT), 2 * FLAT)


@pytest.mark.parametrize("n", [17, 19])
def test_a_vector_of_the_wrong_length_is_refused(n):
    with pytest.raises(ValueError, match=rf"last axis of 18, got shape \(2, {n}\)"):
        LAYOUT.views(torch.zeros(2, n))


def test_tensors_with_other_names_are_refused():
    views = LAYOUT.views(FLAT)
    views["extra"] = views.pop("bias")
    with pytest.raises(ValueError, match="expected tensors .*'bias'.*got .*'extra'"):
        LAYOUT.flatten(views)
