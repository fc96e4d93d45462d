"""The replay ring: what it keeps, what it draws, and that it continues bit for bit."""

import numpy as np
import pytest

from lib.rl.memory import ReplayMemory


def filled(entries: int, capacity: int = 5, seed: int = 0) -> ReplayMemory:
    memory = ReplayMemory(capacity, num_states=2, seed=seed)
    for i in range(entries):
        memory.add([i, i + .5], i / 10, -i, [i + 1, i + 1.5], i % 3 == 2)
    return memory


def stored(memory: ReplayMemory) -> list[int]:
    return sorted(-memory.sample(memory.capacity)[2].astype(int))


@pytest.mark.parametrize(('entries', 'kept'), [(1, [0]), (4, [0, 1, 2, 3]), (5, [0, 1, 2, 3, 4]), (7, [2, 3, 4, 5, 6])])
def test_keeps_the_latest(entries, kept):
    memory = filled(entries)
    assert len(memory) == len(kept)
    assert stored(memory) == kept


def test_a_row_is_one_transition():
    for state, action, reward, next_state, terminal in zip(*filled(7).sample(5), strict=True):
        i = -int(reward)
        assert state.tolist() == [i, i + .5] and next_state.tolist() == [i + 1, i + 1.5]
        assert action.tolist() == [np.float32(i / 10)] and terminal == (i % 3 == 2)


def test_sample_shapes_and_types():
    shapes = [array.shape for array in filled(5).sample(3)]
    assert shapes == [(3, 2), (3, 1), (3,), (3, 2), (3,)]
    assert all(array.dtype == np.float32 for array in filled(5).sample(3))


def test_without_replacement_each_entry_equally_often():
    memory = filled(20, capacity=20)
    draws = [-memory.sample(5)[2].astype(int) for _ in range(2000)]
    assert all(len(set(draw)) == 5 for draw in draws)
    counts = np.bincount(np.concatenate(draws), minlength=20)
    expected, deviation = 2000 * 5 / 20, np.sqrt(2000 * .25 * .75)
    assert np.abs(counts - expected).max() < 4 * deviation  # the oldest and the newest (19) are among them


def test_fewer_stored_than_asked():
    assert stored(filled(3)) == [0, 1, 2]
    with pytest.raises(ValueError, match='empty'):
        filled(0).sample(1)


def test_a_sample_is_a_copy():
    memory = filled(5)
    memory.sample(5)[0][:] = 99
    assert memory.arrays['states'].max() < 99


def test_seed_decides_the_draws():
    def draws(seed):
        memory = filled(5, seed=seed)
        return [memory.sample(2)[2].tolist() for _ in range(10)]
    first = draws(seed=3)
    np.random.seed(1)  # noqa: NPY002 - the global generator must not matter
    assert draws(seed=3) == first
    assert draws(seed=4) != first


@pytest.mark.parametrize('entries', [0, 3, 7])
def test_state_dict_continues_identically(entries):
    memory = filled(entries)
    if entries:
        memory.sample(2)
    resumed = ReplayMemory(5, 2, seed=123)
    resumed.load_state_dict(memory.state_dict())
    for i in range(20):
        for m in (memory, resumed):
            m.add([i, i], i, 100 + i, [i, i], False)
        for one, two in zip(memory.sample(3), resumed.sample(3), strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize('other', [ReplayMemory(6, 2, 0), ReplayMemory(5, 3, 0)])
def test_another_shape_is_refused(other):
    with pytest.raises(ValueError, match='settings of the saved run'):
        other.load_state_dict(filled(3).state_dict())


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match='at least 1'):
        ReplayMemory(0, 2, 0)
