"""The growing layer of the key-value cache against plain concatenation."""

import copy
import pickle

import pytest
import torch
from transformers.cache_utils import DynamicLayer

from tunesmith_plugins.engines.growing import ROOM, Growing, joined


def states(time, rows=2, seed=0):
    return torch.randn(rows, 3, time, 4, generator=torch.Generator().manual_seed(seed))


def layer_of(keys, values):
    layer = DynamicLayer()
    layer.update(keys, values)
    return layer


def both(time, rows=2, seed=0):
    keys, values = states(time, rows, seed), states(time, rows, seed + 100)
    plain = DynamicLayer()
    plain.update(keys, values)
    return plain, Growing.over((keys.clone(), values.clone()), like=plain)


def assert_same(plain, layer):
    torch.testing.assert_close(layer.keys, plain.keys, rtol=0, atol=0)
    torch.testing.assert_close(layer.values, plain.values, rtol=0, atol=0)
    assert layer.get_seq_length() == plain.get_seq_length()


def test_it_holds_what_concatenation_holds_and_moves_seldom():
    plain, layer = both(5)
    moves = 0
    for turn in range(3 * ROOM):
        new = states(1, seed=turn), states(1, seed=turn + 1000)
        before = layer._stores[0].data_ptr()
        shown = layer.update(*new)
        expected = plain.update(*new)
        moves += layer._stores[0].data_ptr() != before
        assert all(torch.equal(a, b) for a, b in zip(shown, expected, strict=True))
    assert_same(plain, layer)
    assert moves == 3


def test_several_positions_at_once_find_room():
    plain, layer = both(5)
    for time in (1, ROOM + 9, 3):
        plain.update(states(time), states(time))
        layer.update(states(time), states(time))
    assert_same(plain, layer)


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.crop(-2),
        lambda layer: layer.reorder_cache(torch.tensor([1, 0])),
        lambda layer: layer.batch_select_indices(torch.tensor([1])),
        lambda layer: layer.batch_repeat_interleave(2),
    ],
)
def test_what_transformers_does_to_a_layer_is_followed(change):
    plain, layer = both(5)
    for each in (plain, layer):
        each.update(states(1, seed=7), states(1, seed=8))
        change(each)
    new = states(1, rows=len(plain.keys), seed=9)
    plain.update(new, new)
    layer.update(new, new)
    assert_same(plain, layer)


def test_rows_are_a_copy_with_room_of_its_own():
    _, layer = both(5)
    layer.update(states(1), states(1))
    kept = layer.keys.clone()
    other = layer.rows(torch.tensor([1, 1, 0]))
    other.update(states(1, rows=3, seed=3), states(1, rows=3, seed=4))
    assert torch.equal(layer.keys, kept)
    layer.update(states(1, seed=5), states(1, seed=6))
    assert torch.equal(other.keys[:, :, :6], kept[[1, 1, 0]])
    assert torch.equal(other.keys[:, :, 6:], states(1, rows=3, seed=3))


@pytest.mark.parametrize("virtual", [0, 2])
def test_dropped_positions_are_gone_and_the_virtual_ones_stay(virtual):
    plain, layer = both(9)
    for each in (plain, layer):
        each.update(states(1, seed=3), states(1, seed=4))
    layer.drop(3, virtual)
    kept = [*range(virtual), *range(virtual + 3, 10)]
    plain.keys, plain.values = plain.keys[:, :, kept], plain.values[:, :, kept]
    assert_same(plain, layer)
    for turn in range(ROOM):
        plain.update(states(1, seed=turn), states(1, seed=turn))
        layer.update(states(1, seed=turn), states(1, seed=turn))
    assert_same(plain, layer)


@pytest.mark.parametrize("virtual", [0, 2])
def test_a_row_that_is_put_in_stands_at_the_end_and_leaves_the_others_alone(virtual):
    _, layer = both(9, rows=3)
    before = layer.keys.clone(), layer.values.clone()
    keys, values = states(5, rows=2, seed=20), states(5, rows=2, seed=21)
    layer.put(torch.tensor([2, 0]), layer_of(keys, values), virtual)
    for shown, new, old in ((layer.keys, keys, before[0]), (layer.values, values, before[1])):
        assert torch.equal(shown[1], old[1])
        rest = 5 - virtual
        assert torch.equal(shown[[2, 0]][:, :, 9 - rest :], new[:, :, virtual:])
        assert torch.equal(shown[[2, 0]][:, :, :virtual], new[:, :, :virtual])
        assert torch.equal(shown[[2, 0]][:, :, virtual : 9 - rest], old[[2, 0]][:, :, virtual : 9 - rest])


@pytest.mark.parametrize("virtual", [0, 2])
def test_joined_rows_are_padded_with_zeros_behind_the_virtual_positions(virtual):
    long, short = (states(7), states(7, seed=1)), (states(4, rows=1, seed=2), states(4, rows=1, seed=3))
    layer = joined([layer_of(*short), layer_of(*long)], virtual)
    assert layer.keys.shape == (3, 3, 7, 4)
    for shown, wide, small in ((layer.keys, long[0], short[0]), (layer.values, long[1], short[1])):
        assert torch.equal(shown[1:], wide)
        assert torch.equal(shown[:1, :, :virtual], small[:, :, :virtual])
        assert not shown[:1, :, virtual : virtual + 3].any()
        assert torch.equal(shown[:1, :, virtual + 3 :], small[:, :, virtual:])


def test_a_plain_layer_is_taken_over_where_it_stands():
    plain, _ = both(5)
    layer, held = layer_of(plain.keys, plain.values), plain.keys.clone()
    first = layer.keys
    assert Growing.taking_over(layer) is layer
    for turn in range(3):
        new = states(2, seed=turn), states(2, seed=turn + 50)
        keys, values = layer.extended(2)
        keys[:, :, -2:], values[:, :, -2:] = new
        plain.update(*new)
        assert_same(plain, layer)
        assert keys is layer.keys
    assert torch.equal(first, held)  # what was there before belongs to whoever holds it


def test_what_is_shared_is_left_alone_by_an_extension():
    _, layer = both(5)
    layer.extended(1)
    shown = layer.keys
    other = copy.copy(layer)
    before = shown.clone()
    for one in (layer, other):
        one.extended(1)[0][:, :, -1] = torch.nan
    assert torch.equal(shown, before)
    layer.crop(-2)
    layer.extended(1)[0][:, :, -1] = 7
    assert not (other.keys == 7).any()


def test_tensors_taken_from_a_layer_that_was_taken_over_stay_as_they_are():
    plain, _ = both(5)
    layer = Growing.taking_over(layer_of(plain.keys, plain.values))
    layer.update(states(2), states(2))
    taken = layer.keys, layer.keys.clone()
    layer.crop(-2)
    layer.extended(1)[0][:, :, -1] = 7
    assert torch.equal(*taken)


def test_gradients_through_what_was_kept_are_those_of_a_plain_layer():
    plain, _ = both(5)
    found = []
    for layer in (layer_of(plain.keys, plain.values), Growing.taking_over(layer_of(plain.keys, plain.values))):
        with torch.no_grad():
            layer.update(states(1), states(1))
        first, second = (states(1, seed=seed).requires_grad_() for seed in (1, 2))
        kept, _ = layer.update(first, first)
        square = (kept * kept).sum()
        again, _ = layer.update(second, second)
        loss = square + (again * again).sum()
        layer.crop(-2)
        with torch.no_grad():
            layer.update(states(2, seed=9), states(2, seed=9))
        loss.backward()
        found.append((first.grad, second.grad, layer.keys))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_copies_and_pickles_hold_what_is_shown_alone_and_a_reset_lets_it_go():
    _, layer = both(5)
    layer.update(states(1), states(1))
    shown = layer.keys.clone()
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.keys.untyped_storage().nbytes() == shown.numel() * shown.element_size()
        other.extended(1)[0][:, :, -1] = 7
        assert torch.equal(other.keys[:, :, :-1], shown)
        assert torch.equal(layer.keys, shown)
    layer.reset()
    assert not layer._stores
    layer.update(states(3), states(3))
    assert torch.equal(layer.keys, states(3))
