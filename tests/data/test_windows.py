"""Keyed windows of shards: each example once a pass, seeking is iterating, one window is the global shuffle."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onecurve.data import windows as module
from onecurve.data.plan import BatchPlan
from onecurve.data.position import Position
from onecurve.data.windows import Windows

sizes = st.lists(st.integers(1, 9), min_size=1, max_size=12).map(tuple)
SHARDS = (5, 9, 1, 7, 30, 2, 8)


def plan(windows, size=6, seed=3, **more):
    items = np.arange(sum(windows.sizes), dtype=np.int32) + 1
    return BatchPlan(items, seed, size, 2, windows=windows, max_steps=10**6, **more)


def shards_of(windows, ids):
    return np.searchsorted(np.cumsum(windows.sizes), ids, side="right").tolist()


def check_pass(windows, ids):
    """Each example once, and no window begins before the one before it has ended."""
    assert sorted(ids.tolist()) == [*range(sum(windows.sizes))], "not each example once"
    seen, left = [], list(shards_of(windows, ids))
    while left:
        size = 0
        members = set()
        while len(members) < windows.shards and size < len(left) and len(seen) + len(members) < len(windows.sizes):
            members.add(left[size])
            size += 1
        size = sum(windows.sizes[shard] for shard in members)
        assert set(left[:size]) == members, "windows overlap"
        seen += members
        left = left[size:]


@given(sizes, st.integers(1, 14), st.integers(0, 2**40), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_a_pass_has_each_example_once_and_a_slice_is_a_part_of_it(sizes, shards, seed, epoch):
    windows = Windows(sizes, shards)
    total = sum(sizes)
    whole = windows.ids(0, total, seed, epoch)
    assert whole.dtype == np.int64 and sorted(whole.tolist()) == [*range(total)]
    middle = total // 3
    assert Windows(sizes, shards).ids(middle, total, seed, epoch).tolist() == whole[middle:].tolist()
    one_by_one = [windows.ids(at, at + 1, seed, epoch).item() for at in range(total)]
    assert one_by_one == whole.tolist()


def test_examples_mix_within_their_window_only():
    windows = Windows((40,) * 6, 2)
    ids = windows.ids(0, 240, 0, 0)
    check_pass(windows, ids)
    for start in (0, 80, 160):
        of_window = shards_of(windows, ids[start : start + 80])
        assert len(set(of_window)) == 2
        assert len(set(of_window[:20])) == 2, "one shard after the other"
    with pytest.raises(AssertionError, match="windows overlap"):
        check_pass(windows, Windows((40,) * 6, 6).ids(0, 240, 0, 0))


def test_an_example_drawn_twice_is_caught(monkeypatch):
    def constant(size, key):
        return np.arange(size) if size == len(SHARDS) else np.zeros(size, np.uint8)

    monkeypatch.setattr(module, "shuffled", constant)
    with pytest.raises(AssertionError, match="not each example once"):
        check_pass(Windows(SHARDS, 2), Windows(SHARDS, 2).ids(0, sum(SHARDS), 0, 0))


def test_passes_seeds_and_windows_have_orders_of_their_own():
    windows = Windows((50,) * 4, 2)
    orders = [windows.ids(0, 200, seed, epoch).tolist() for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert len({tuple(order) for order in orders}) == 3
    # Two windows of equal shards are not the same permutation twice
    first, second = (np.argsort(windows.ids(start, start + 100, 0, 0)).tolist() for start in (0, 100))
    assert first != second
    companions = {frozenset(shards_of(windows, windows.ids(0, 100, 0, epoch))) for epoch in range(8)}
    assert len(companions) > 2, "each pass the same shards together"


@given(sizes, st.integers(0, 2**40), st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_one_window_with_every_shard_is_the_shuffle_of_all_examples(sizes, seed, number):
    windows = Windows(sizes, len(sizes))
    whole = plan(windows, seed=seed)
    for step in range(1 + number, 5 + number):
        ours, theirs = whole.step(step), replace(whole, windows=None).step(step)
        assert ours.sample_ids.tolist() == theirs.sample_ids.tolist() and ours.num_items == theirs.num_items


@given(sizes, st.integers(1, 5), st.integers(1, 9))
@settings(max_examples=15, deadline=None)
def test_steps_go_through_windows_and_passes_and_seeking_is_iterating(sizes, shards, size):
    windows = Windows(sizes, shards)
    whole = plan(windows, size)
    steps = 2 * whole.steps_per_epoch
    ids = np.concatenate([step.sample_ids for step in whole.steps(1, steps)])
    assert ids.tolist() == [*windows.ids(0, sum(sizes), 3, 0), *windows.ids(0, sum(sizes), 3, 1)]
    assert plan(windows, size).step(steps).sample_digest == whole.step(steps).sample_digest
    assert all(step.num_items == int((step.sample_ids + 1).sum()) for step in whole.steps(1, steps))


def test_ranks_share_a_step_and_a_resume_goes_on_where_it_was():
    whole = plan(Windows(SHARDS, 2))
    for step in whole.steps(1, 25):
        for ranks in (1, 2, 3):
            own = [ids for rank in range(ranks) for _, ids, counts in step.of_rank(rank, ranks) if counts]
            assert sorted(np.concatenate(own)) == sorted(step.sample_ids)
    rest = whole.started_at(whole.position(7), None)
    assert [step.sample_digest for step in rest.steps(8, 30)] == [step.sample_digest for step in whole.steps(8, 30)]
    other = replace(whole, global_batch_size=4).started_at(whole.position(7), None)
    left = np.concatenate([step.sample_ids for step in other.steps(8, 12)])
    assert left.tolist() == whole.windows.ids(42, 62, 3, 0).tolist(), "another batch size goes on in the same order"


def test_other_windows_begin_with_a_pass_of_their_own():
    assert Position(7, 42, 0, 42, 3).after_changes(["data.shuffle_window"]) == Position(7, 42, 1, 0, None)


def test_memory_grows_with_the_window_and_not_with_the_data():
    def peak(shards):
        windows = Windows((10_000,) * shards, 4)
        tracemalloc.start()
        windows.ids(5_000 * shards, 5_000 * shards + 512, 0, 0)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(4)
    assert peak(400) < 1.2 * peak(8)
