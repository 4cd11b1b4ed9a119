"""Which example each draw of a mixture gives: exact shares, passes that hold each example once, seeking anywhere."""

import sys
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onecurve.data.micro_batches import Cut
from onecurve.data.mixture import Mixture, weights_at, whole_weights
from onecurve.data.plan import BatchPlan
from onecurve.errors import ConfigError

NAMES = ("news", "tweets", "mail", "web")


@st.composite
def mixtures(draw, most=4, largest=30):
    names = NAMES[: draw(st.integers(1, most))]
    numbers = {name: (draw(st.integers(1, largest)), draw(st.integers(1, 9))) for name in names}
    sizes = {name: size for name, (size, _) in numbers.items()}
    return Mixture(sizes, whole_weights({name: weight for name, (_, weight) in numbers.items()}))


def sources_of(mixture, ids):
    ends = np.cumsum(list(mixture.sizes.values()))
    return [list(mixture.sizes)[place] for place in np.searchsorted(ends, ids, side="right")]


@given(mixtures(), st.integers(0, 2**40), st.integers(0, 10**9))
@settings(max_examples=25, deadline=None)
def test_every_block_holds_exactly_the_weight_of_each_source(mixture, seed, block):
    size = sum(mixture.weights.values())
    for number in range(block, block + 3):
        ids, _ = mixture.draws(number * size, (number + 1) * size, seed)
        assert Counter(sources_of(mixture, ids)) == mixture.weights


@given(mixtures(), st.integers(0, 2**40), st.integers(0, 300))
@settings(max_examples=25, deadline=None)
def test_the_draws_of_each_source_are_counted(mixture, seed, stop):
    ids, _ = mixture.draws(0, stop, seed) if stop else ([], [])
    assert mixture.counts(stop, seed) == {name: sources_of(mixture, ids).count(name) for name in mixture.sizes}


def test_counting_them_costs_the_same_anywhere(monkeypatch):
    mixture, numbered, asked = Mixture({"news": 5, "tweets": 2}, {"news": 3, "tweets": 2}), Mixture._numbered, []
    monkeypatch.setattr(Mixture, "_numbered", lambda self, *window: asked.append(window) or numbered(self, *window))
    assert mixture.counts(5 * 10**12 + 4, 7) == {"news": 3 * 10**12 + 2, "tweets": 2 * 10**12 + 2}
    assert all(stop - start < 5 for start, stop, _ in asked)


def check_passes(mixture, seed, most=600):
    """Every pass over a source that has ended holds each of its examples once, and passes follow one another."""
    ids, passes = mixture.draws(0, most, seed)
    seen = defaultdict(list)
    for name, number, of_pass in zip(sources_of(mixture, ids), ids.tolist(), passes.tolist(), strict=True):
        seen[name].append((of_pass, number))
    start = 0
    for name, size in mixture.sizes.items():
        found = seen[name]
        for first in range(0, len(found) - size + 1, size):
            assert {of_pass for of_pass, _ in found[first : first + size]} == {first // size}, "another pass"
            assert sorted(number for _, number in found[first : first + size]) == [*range(start, start + size)]
        start += size


@given(mixtures(), st.integers(0, 2**40))
@settings(max_examples=20, deadline=None)
def test_each_pass_over_a_source_holds_each_of_its_examples_once(mixture, seed):
    check_passes(mixture, seed)


def test_a_pass_number_that_is_ignored_is_caught(monkeypatch):
    mixture = Mixture({"news": 7, "tweets": 3}, {"news": 1, "tweets": 1})
    draws = Mixture.draws

    def of_one_pass(self, start, stop, seed):
        ids, passes = draws(self, start, stop, seed)
        return ids, np.zeros_like(passes)

    monkeypatch.setattr(Mixture, "draws", of_one_pass)
    with pytest.raises(AssertionError, match="another pass"):
        check_passes(mixture, 0)


def test_passes_over_a_source_have_orders_of_their_own_and_seeds_too():
    mixture = Mixture({"news": 40}, {"news": 1})
    orders = [mixture.draws(first, first + 40, seed)[0].tolist() for first, seed in ((0, 0), (40, 0), (0, 1))]
    assert sorted(orders[0]) == sorted(orders[1]) and len({tuple(order) for order in orders}) == 3


@given(mixtures(), st.integers(0, 2**40), st.integers(0, 20_000), st.lists(st.integers(1, 40), min_size=1, max_size=9))
@settings(max_examples=15, deadline=None)
def test_seeking_gives_the_draws_that_walking_gives(mixture, seed, first, steps):
    stop = first + sum(steps)
    whole = mixture.draws(first, stop, seed)
    walked, at = [], first
    for step in steps:
        walked.append(replace(mixture).draws(at, at + step, seed))  # a new one has nothing in hand
        at += step
    for place in (0, 1):
        assert np.concatenate([part[place] for part in walked]).tolist() == whole[place].tolist()


def test_shares_are_nearly_exact_in_every_part_of_a_large_block():
    mixture = Mixture(dict.fromkeys(NAMES, 1000), dict(zip(NAMES, (5501, 2999, 1001, 499), strict=True)))
    ids, _ = mixture.draws(0, 10_000, 3)
    sources = sources_of(mixture, ids)
    for name, share in mixture.shares.items():
        drawn = np.cumsum([source == name for source in sources])
        assert np.abs(drawn - share * np.arange(1, 10_001)).max() < 3, name


def work_to_seek(step):
    """Calls of any function until a plan that is new has a step."""
    mixture = Mixture({"news": 300, "tweets": 50}, {"news": 7, "tweets": 3})
    plan = BatchPlan(np.ones(350, int), 3, 32, 4, max_steps=2_000_000, mixture=mixture)
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        plan.step(step)
    finally:
        sys.setprofile(None)
    return calls


def test_seeking_step_a_million_is_the_work_of_seeking_step_twenty():
    work_to_seek(1)
    assert 20 < work_to_seek(1_000_000) < 2 * work_to_seek(20) < 2000


@st.composite
def plans(draw):
    mixture = draw(mixtures())
    size = sum(mixture.sizes.values())
    lengths = np.array(draw(st.lists(st.integers(1, 50), min_size=size, max_size=size)))
    micro = draw(st.integers(1, 4))
    batch = micro * draw(st.integers(1, 6))
    return BatchPlan(lengths + 1, draw(st.integers(0, 99)), batch, micro, draw(st.integers(1, 30)), mixture=mixture)


def computed(plan, first, last, world_size):
    """What the ranks compute together: each step's (example, pass), and what it tells of itself."""
    for step in plan.steps(first, last):
        drawn = []
        for rank in range(world_size):
            for position, ids, counts in step.of_rank(rank, world_size):
                drawn += zip(ids.tolist(), step.passes_at(position).tolist(), strict=True) if counts else ()
        yield step.number, sorted(drawn), step.num_items, step.num_samples, step.sample_digest


@given(plans(), st.data())
@settings(max_examples=20, deadline=None)
def test_any_cut_and_rank_count_and_an_interruption_anywhere_give_the_same_examples_and_passes(plan, data):
    stop = data.draw(st.integers(0, plan.max_steps), "steps before the interruption")
    before, after = (data.draw(st.integers(1, 6), name) for name in ("ranks before", "ranks after"))
    cut = Cut(plan.num_items - 1, data.draw(st.booleans()), data.draw(st.none() | st.integers(50, 200)))
    other = replace(plan, micro_batch_size=data.draw(st.integers(1, 7)), cut=cut).started_at(plan.position(stop), None)
    whole = [*computed(plan, 1, plan.max_steps, 1)]
    assert [*computed(plan, 1, stop, before), *computed(other, stop + 1, plan.max_steps, after)] == whole
    assert sum(len(drawn) for _, drawn, *_ in whole) == whole[-1][3]


@given(plans(), st.integers(0, 30))
@settings(max_examples=20, deadline=None)
def test_a_step_tells_the_draws_of_each_source_so_far_whatever_was_interrupted(plan, stop):
    seen = Counter()
    for step in plan.steps(1, plan.max_steps):
        seen.update(sources_of(plan.mixture, step.sample_ids))
        assert step.seen == {name: seen[name] for name in plan.mixture.sizes}
        assert sum(step.seen.values()) == step.num_samples
        assert stop >= step.number or plan.started_at(plan.position(stop), None).step(step.number).seen == step.seen
    assert replace(plan, mixture=None).step(1).seen == {}


@given(plans(), st.integers(1, 20))
@settings(max_examples=12, deadline=None)
def test_after_a_change_of_weights_the_draws_of_each_source_still_sum_to_the_samples(plan, stop):
    weights = {name: 1 + weight for name, weight in plan.mixture.weights.items()}
    changed = replace(plan, mixture=replace(plan.mixture, weights=whole_weights(weights)))
    changed = changed.started_at(plan.position(stop).after_changes({"data.weights"}), None)
    for step in changed.steps(stop + 1, stop + 5):
        assert sum(step.seen.values()) == step.num_samples
        assert step.seen == changed.mixture.counts(step.num_samples, plan.seed)


@given(plans(), st.integers(1, 20), st.integers(1, 9), st.integers(1, 3))
@settings(max_examples=12, deadline=None)
def test_another_batch_size_and_more_epochs_go_on_with_the_next_draw(plan, stop, size, epochs):
    longer = replace(plan, global_batch_size=size, micro_batch_size=1).started_at(plan.position(stop), epochs + 30.0)
    ids = [step.sample_ids for step in (*plan.steps(1, stop), *longer.steps(stop + 1, stop + 20))]
    drawn = np.concatenate(ids)
    assert drawn.tolist() == plan.mixture.draws(0, len(drawn), plan.seed)[0].tolist()


def test_the_order_of_a_seed_never_changes():
    # Checkpoints and published digests rest on this: a change here is a change of every user's curve
    ids, passes = Mixture({"news": 5, "tweets": 2}, {"news": 3, "tweets": 2}).draws(0, 15, 7)
    assert ids.tolist() == [5, 3, 1, 6, 4, 2, 6, 0, 5, 4, 2, 3, 6, 5, 0]
    assert passes.tolist() == [0, 0, 0, 0, 0, 0, 1, 0, 1, 1, 1, 1, 2, 2, 1]


def test_weights_become_whole_numbers_in_the_same_proportions():
    assert whole_weights({"a": 0.7, "b": 0.3}) == whole_weights({"a": 70, "b": 30}) == {"a": 7, "b": 3}
    assert whole_weights({"a": 1.5, "b": 1}) == {"a": 3, "b": 2}
    assert whole_weights({"a": 9}) == {"a": 1}
    with pytest.raises(ConfigError, match=r"data.train: the weights a 0.333333, b 0.666667 .* 10,000,000; .*Round"):
        whole_weights({"a": 0.3333333, "b": 0.6666667})


def test_a_temperature_flattens_shares_by_size():
    sizes = {"a": 10_000, "b": 100, "c": 1}
    assert weights_at(0.5, sizes) == {"a": 100, "b": 10, "c": 1}
    assert weights_at(0, sizes) == {"a": 1, "b": 1, "c": 1}
    assert weights_at(1, {"a": 300, "b": 100}) == {"a": 3, "b": 1}
    assert weights_at(1, {"a": 10**9, "b": 1})["b"] == 1, "no source is left out"
