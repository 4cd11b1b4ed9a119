import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onecurve.config import Recipe
from onecurve.data import plan as plan_module
from onecurve.data.micro_batches import Cut
from onecurve.data.plan import BatchPlan, num_passes, plan_run, plan_scoring
from onecurve.data.position import stored_position
from onecurve.errors import ConfigError

ORDER_OF_SEED_7 = [[6, 4, 5, 9], [0, 7, 8, 1], [3, 2]]


@st.composite
def cuts(draw, num_examples, by_length=None):
    """Any cut of so many examples of random lengths."""
    lengths = np.array(draw(st.lists(st.integers(1, 50), min_size=num_examples, max_size=num_examples)), np.int32)
    tokens = draw(st.none() | st.integers(int(lengths.max()), 200))
    return Cut(lengths, draw(st.booleans()) if by_length is None else by_length, tokens, draw(st.booleans()))


@st.composite
def plans(draw, by_length=None):
    micro, num_examples = draw(st.integers(1, 5)), draw(st.integers(1, 60))
    return BatchPlan(
        num_items=np.arange(1, num_examples + 1),
        seed=draw(st.integers(0, 2**40)),
        global_batch_size=micro * draw(st.integers(1, 6)),
        micro_batch_size=micro,
        cut=draw(cuts(num_examples, by_length) if by_length else st.none() | cuts(num_examples)),
    )


@given(plans(), st.integers(1, 40), st.integers(1, 9))
@settings(max_examples=200, deadline=None)
def test_ranks_together_compute_each_micro_batch_of_a_step_once_at_any_world_size(plan, number, world_size):
    step = plan.step(number)
    shares = [list(step.of_rank(rank, world_size)) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1, "every rank must run the same number of passes"
    computed = sorted((position, tuple(ids)) for share in shares for position, ids, counts in share if counts)
    assert computed == [(i, tuple(ids)) for i, ids in enumerate(step.micro_batches)]


@given(plans(), st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_an_epoch_visits_each_example_once_and_its_last_step_may_be_short(plan, epoch):
    first = epoch * plan.steps_per_epoch + 1
    steps = list(plan.steps(first, first + plan.steps_per_epoch - 1))
    seen = np.concatenate([step.sample_ids for step in steps])
    assert sorted(seen) == list(range(plan.num_examples))
    assert all(len(step.sample_ids) == plan.global_batch_size for step in steps[:-1])
    assert len(steps[-1].sample_ids) == (plan.short_last_batch or plan.global_batch_size)
    assert sum(step.num_items for step in steps) == plan.num_items.sum()
    assert steps[-1].num_samples == (epoch + 1) * plan.num_examples


@given(plans(), st.integers(1, 50), st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_however_a_step_is_cut_it_holds_the_same_examples_once_and_tells_them_in_the_same_order(plan, number, other):
    step, uncut = plan.step(number), BatchPlan(plan.num_items, plan.seed, plan.global_batch_size, other).step(number)
    assert uncut.sample_ids.tolist() == np.concatenate(uncut.micro_batches).tolist()
    assert sorted(np.concatenate(step.micro_batches)) == sorted(uncut.sample_ids)
    assert (step.sample_digest, step.num_items, step.num_samples) == (
        uncut.sample_digest,
        uncut.num_items,
        uncut.num_samples,
    )


@given(plans(), st.integers(1, 50), st.integers(1, 9))
@settings(max_examples=200, deadline=None)
def test_no_micro_batch_is_beyond_its_bound_and_no_step_beyond_the_passes_foreseen(plan, number, world_size):
    micro_batches = plan.step(number).micro_batches
    assert min(map(len, micro_batches)) > 0
    if plan.cut and plan.cut.tokens:
        assert max(map(plan.cut.cost, micro_batches)) <= plan.cut.tokens
    else:
        assert sorted(map(len, micro_batches))[1:] == [plan.micro_batch_size] * (len(micro_batches) - 1)
    assert num_passes(len(micro_batches), world_size) <= plan.most_passes(world_size)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 9))
@settings(max_examples=200, deadline=None)
def test_grouping_by_length_never_computes_more_but_for_what_a_short_micro_batch_lacks(lengths, size):
    ids = np.arange(len(lengths))
    grouped, plain = Cut(np.array(lengths), by_length=True), Cut(np.array(lengths), by_length=False)
    ours, theirs = (sum(map(cut.cost, cut(ids, size))) for cut in (grouped, plain))
    assert sum(lengths) <= ours <= theirs + -len(ids) % size * max(lengths)


@given(plans(by_length=True), st.integers(1, 50), st.integers(1, 9))
@settings(max_examples=200, deadline=None)
def test_no_rank_waits_longer_in_a_step_than_the_costliest_micro_batch_takes(plan, number, world_size):
    step = plan.step(number)
    costs = [[plan.cut.cost(ids) for _, ids, _ in step.of_rank(rank, world_size)] for rank in range(world_size)]
    passes = [max(of_pass) for of_pass in zip(*costs, strict=True)]
    assert all(sum(passes) - sum(own) <= max(passes) for own in costs)


@given(plans(), st.integers(1, 200))
@settings(max_examples=100, deadline=None)
def test_seeking_gives_the_step_that_walking_gives(plan, number):
    walked = list(plan.steps(1, number))[-1]
    assert walked.sample_digest == plan.step(number).sample_digest
    assert walked.num_samples == plan.step(number).num_samples


@st.composite
def planned_runs(draw):
    """A recipe's plan of a whole run, by epochs or by steps, over examples of random lengths."""
    micro = draw(st.integers(1, 4))
    batches = {"global_batch_size": micro * draw(st.integers(1, 6)), "micro_batch_size": micro}
    epochs = st.fixed_dictionaries({"epochs": st.floats(0.1, 4)})
    until = draw(epochs | st.fixed_dictionaries({"max_steps": st.integers(1, 40)}))
    recipe = Recipe.model_validate(
        {
            "output_dir": "unused",
            "seed": draw(st.integers(0, 2**40)),
            "task": {"name": "causal_lm"},
            "model": {"path": "unused"},
            "data": {"train": "unused"},
            "train": batches | until | draw(switches()),
        }
    )
    return plan_run([split(draw(st.lists(st.integers(1, 500), min_size=1, max_size=40)))], recipe)


def switches():
    tokens = st.fixed_dictionaries({"micro_batch_tokens": st.integers(500, 2000), "micro_batch_size": st.none()})
    others = {"group_by_length": st.booleans(), "packing": st.sampled_from(["off", "on", "auto"])}
    return st.builds(dict.__or__, st.just({}) | tokens, st.fixed_dictionaries(others))


def split(lengths, name="train"):
    """Of a split what the plan reads."""
    return SimpleNamespace(
        name=name, lengths=np.array(lengths), num_items=np.array(lengths) + 1, sets=(), each=1, growth=0
    )


def computed(plan, first, last, world_size):
    """What the ranks compute together: each step's example ids, once each, and what it tells of itself."""
    for step in plan.steps(first, last):
        shares = (share for rank in range(world_size) for share in step.of_rank(rank, world_size))
        ids = sorted(i for _, ids, counts in shares if counts for i in ids)
        yield step.number, ids, step.num_items, step.num_samples, step.sample_digest


@given(planned_runs(), st.data())
@settings(max_examples=300, deadline=None)
def test_a_run_interrupted_anywhere_sees_what_the_uninterrupted_one_sees(plan, data):
    stop = data.draw(st.integers(0, plan.max_steps), "steps before the interruption")
    before, after = (data.draw(st.integers(1, 6), name) for name in ("ranks before", "ranks after"))
    other = data.draw(st.none() | cuts(plan.num_examples), "cut after")
    cut = replace(plan, micro_batch_size=data.draw(st.integers(1, 7), "micro_batch_size after"), cut=other)
    whole = [*computed(plan, 1, plan.max_steps, 1)]
    assert [*computed(plan, 1, stop, before), *computed(cut, stop + 1, plan.max_steps, after)] == whole
    assert sum(len(ids) for _, ids, *_ in whole) == whole[-1][3], "no sample is missing or told twice"


def seen(plan, first, last):
    return [number for step in plan.steps(first, last) for number in step.sample_ids.tolist()]


@given(planned_runs(), st.integers(1, 30), st.integers(1, 20), st.integers(1, 3), st.data())
@settings(max_examples=200, deadline=None)
def test_after_any_change_of_the_batch_size_each_epoch_still_holds_each_example_once(plan, stop, size, passes, data):
    stops = [stop, stop + data.draw(st.integers(1, 30), "a second change after")]
    ids = seen(plan, 1, stop)
    second = replace(plan, global_batch_size=size, micro_batch_size=1).started_at(plan.position(stop), None)
    assert second.step(stop + 1).samples_before == len(ids)
    ids += seen(second, stop + 1, stops[1])
    third = replace(plan, micro_batch_size=1).started_at(second.position(stops[1]), passes + 5.0)
    if third.max_steps > stops[1]:
        ids += seen(third, stops[1] + 1, third.max_steps)
        assert third.step(third.max_steps).num_samples == len(ids)
        assert len(ids) % plan.num_examples == 0 and len(ids) // plan.num_examples == passes + 5
    for first in range(0, len(ids), plan.num_examples):
        of_epoch = ids[first : first + plan.num_examples]
        assert len(set(of_epoch)) == len(of_epoch), "an example twice in an epoch"


@given(planned_runs(), st.data())
@settings(max_examples=200, deadline=None)
def test_a_plan_that_starts_where_a_run_stopped_is_the_rest_of_its_plan(plan, data):
    stop = data.draw(st.integers(0, plan.max_steps), "steps before")
    rest = plan.started_at(plan.position(stop), None)
    assert [*computed(rest, stop + 1, plan.max_steps, 1)] == [*computed(plan, stop + 1, plan.max_steps, 1)]
    assert rest.position(plan.max_steps) == plan.position(plan.max_steps)
    epochs = data.draw(st.floats(0.1, 4), "epochs")
    whole = replace(plan, max_steps=plan.num_steps(epochs))
    if stop <= whole.max_steps:
        assert whole.started_at(plan.position(stop), epochs).max_steps == whole.max_steps


def test_with_another_seed_a_pass_is_finished_and_other_data_begin_a_new_one():
    plan = BatchPlan(np.ones(10, int), seed=0, global_batch_size=4, micro_batch_size=2)
    position = plan.position(5)
    assert (position.samples, position.epoch, position.offset) == (18, 1, 8)
    other = replace(plan, seed=1).started_at(position.after_changes({"seed"}), None)
    assert sorted(seen(plan, 4, 5) + seen(other, 6, 6)) == list(range(10))
    assert seen(other, 7, 9) == seen(replace(plan, seed=1), 7, 9) != seen(plan, 7, 9)
    more = replace(plan, num_items=np.ones(12, int)).started_at(position.after_changes({"data"}), 3.0)
    assert (more.step(6).samples_before, sorted(seen(more, 6, 8)), more.max_steps) == (18, list(range(12)), 8)


def test_the_position_of_a_checkpoint_that_does_not_tell_it_follows_from_its_step():
    plan = BatchPlan(np.ones(10, int), seed=3, global_batch_size=4, micro_batch_size=2)
    for step in range(1, 8):
        state = {"step": step, "num_examples": 10, "curve": {"train.global_batch_size": 4, "seed": 3}}
        told = stored_position(state)
        assert told == replace(plan.position(step), seed=3)
        assert seen(plan.started_at(told, None), step + 1, 9) == seen(plan, step + 1, 9)


def work_to_start_at(number):
    """Calls of any function, and orders drawn, until a run that starts at a step has that step."""
    plan = BatchPlan(np.arange(1, 49), seed=3, global_batch_size=4, micro_batch_size=2, max_steps=2_000_000)
    plan_module._shuffled.cache_clear()
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")
        assert calls < 10_000, "it walks there"

    sys.setprofile(count)
    try:
        step = next(plan.steps(number, plan.max_steps))
    finally:
        sys.setprofile(None)
    assert step.number == number
    return calls, plan_module._shuffled.cache_info().misses


def test_starting_at_step_a_million_is_the_work_of_starting_at_step_twenty():
    work_to_start_at(1)  # imports what NumPy puts off until it is used
    calls, orders = work_to_start_at(20)  # in the second pass
    assert (calls > 5, orders) == (True, 1)
    assert work_to_start_at(1_000_000) == (calls, orders)


def test_epochs_and_seeds_have_orders_of_their_own():
    plan = BatchPlan(np.ones(100, int), seed=0, global_batch_size=100, micro_batch_size=10)
    other = BatchPlan(np.ones(100, int), seed=1, global_batch_size=100, micro_batch_size=10)
    digests = {plan.step(1).sample_digest, plan.step(2).sample_digest, other.step(1).sample_digest}
    assert len(digests) == 3


def test_the_order_of_a_seed_never_changes():
    # Checkpoints and published digests rest on this: a change here is a change of every user's curve
    plan = BatchPlan(np.ones(10, int), seed=7, global_batch_size=4, micro_batch_size=2)
    assert [step.sample_ids.tolist() for step in plan.steps(1, 3)] == ORDER_OF_SEED_7


def test_a_fraction_of_an_epoch_is_rounded_up_to_whole_steps():
    plan = BatchPlan(np.ones(10, int), seed=0, global_batch_size=4, micro_batch_size=2)
    assert (plan.num_steps(1), plan.num_steps(1.5), plan.num_steps(0.01)) == (3, 5, 1)


def test_missing_positions_repeat_a_micro_batch_that_counts_for_nothing():
    plan = BatchPlan(np.ones(6, int), seed=0, global_batch_size=6, micro_batch_size=2)
    *_, (position, ids, counts) = plan.step(1).of_rank(1, 2)
    assert (position, counts) == (3, False)
    assert ids.tolist() == plan.step(1).micro_batches[-1].tolist()


def recipe(**train):
    return Recipe.model_validate(
        {
            "output_dir": "unused",
            "task": {"name": "sft"},
            "model": {"path": "unused"},
            "data": {"train": "unused", "eval": "unused"},
            "train": {"epochs": 1, "global_batch_size": 8, **train},
        }
    )


def test_a_cut_is_known_to_the_letter():
    in_plan_order, lengths = [5, 1, 9, 3, 4, 4, 2, 8], np.empty(8, int)
    lengths[BatchPlan(np.ones(8, int), 0, 8, 8).step(1).sample_ids] = in_plan_order

    def cut(**train):
        plan = plan_run([split(lengths)], recipe(**train))
        return [lengths[ids].tolist() for ids in plan.step(1).micro_batches]

    assert cut(micro_batch_size=4) == [[5, 1, 9, 3], [4, 4, 2, 8]]
    assert cut(micro_batch_size=4, group_by_length=True) == [[9, 8, 5, 4], [4, 3, 2, 1]]
    assert cut(micro_batch_tokens=18, group_by_length=True) == [[9, 8], [5, 4, 4], [3, 2, 1]]
    assert cut(micro_batch_tokens=18, group_by_length=True, packing="auto") == [[9, 8], [5, 4, 4], [3, 2, 1]]
    assert cut(micro_batch_tokens=18, group_by_length=True, packing="on") == [[5, 4, 4, 3, 2], [9, 8], [1]]
    assert cut(micro_batch_tokens=18) == [[9, 3], [4, 4, 2], [5, 1], [8]]


@pytest.mark.parametrize("name", ["train", "eval"])
def test_an_example_beyond_the_budget_is_named_with_its_tokens(name):
    splits = [split([5, 30, 2] if name == found else [5, 3], found) for found in ("train", "eval")]
    assert plan_run(splits, recipe(micro_batch_tokens=30)).most_passes(1) == (3 if name == "train" else 1)
    with pytest.raises(
        ConfigError, match=rf"^train.micro_batch_tokens: is 29, .* number 1 .* data.{name}, alone has 30 tokens"
    ):
        plan_run(splits, recipe(micro_batch_tokens=29))


@given(st.lists(st.integers(1, 500), min_size=1, max_size=40), switches())
@settings(max_examples=100, deadline=None)
def test_a_split_is_scored_whole_and_by_length(lengths, settings):
    scored = plan_scoring(split(lengths), recipe(**settings))
    assert sorted(np.concatenate(scored.micro_batches)) == scored.sample_ids.tolist() == [*range(len(lengths))]
    if not settings.get("micro_batch_tokens"):
        found = [split(lengths).lengths[ids].tolist() for ids in scored.micro_batches]
        assert [n for part in found for n in part] == sorted(lengths, reverse=True)


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 2)), min_size=1, max_size=40), st.integers(1, 4), st.data())
def test_what_is_not_alike_shares_no_micro_batch(examples, size, data):
    lengths, alike = (np.array(numbers) for numbers in zip(*examples, strict=True))
    tokens = data.draw(st.none() | st.integers(5, 20))
    cut = Cut(lengths, data.draw(st.booleans()), tokens, alike=alike)
    ids = np.array(data.draw(st.permutations(range(len(examples)))))
    parts = cut(ids, size)
    assert sorted(np.concatenate(parts)) == sorted(ids)
    assert all(len(set(alike[part])) == 1 for part in parts)
    assert cut.fewest(size) <= min(map(len, parts))
    if tokens is None:
        assert len(parts) == sum(-(-list(alike).count(kind) // size) for kind in set(alike)), "more than there need be"
