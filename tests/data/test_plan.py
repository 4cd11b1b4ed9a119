import sys
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from onecurve.config import Recipe
from onecurve.data import plan as plan_module
from onecurve.data.plan import BatchPlan, plan_run

ORDER_OF_SEED_7 = [[6, 4, 5, 9], [0, 7, 8, 1], [3, 2]]


@st.composite
def plans(draw, shuffle=True):
    micro = draw(st.integers(1, 5))
    return BatchPlan(
        num_items=np.arange(1, draw(st.integers(1, 60)) + 1),
        seed=draw(st.integers(0, 2**40)),
        global_batch_size=micro * draw(st.integers(1, 6)),
        micro_batch_size=micro,
        shuffle=shuffle,
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
def test_the_micro_batch_size_does_not_change_which_examples_a_step_holds(plan, number, other):
    cut = BatchPlan(plan.num_items, plan.seed, plan.global_batch_size, other)
    assert cut.step(number).sample_digest == plan.step(number).sample_digest
    assert cut.step(number).num_items == plan.step(number).num_items


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
            "train": batches | until,
        }
    )
    return plan_run(np.array(draw(st.lists(st.integers(1, 500), min_size=1, max_size=40))), recipe)


def computed(plan, first, last, world_size):
    """What the ranks compute together: each step's example ids in the order of positions, and its items."""
    for step in plan.steps(first, last):
        shares = (share for rank in range(world_size) for share in step.of_rank(rank, world_size))
        ids = [i for _, ids, counts in sorted(shares, key=lambda share: share[0]) if counts for i in ids]
        yield step.number, ids, step.num_items, step.num_samples, step.sample_digest


@given(planned_runs(), st.data())
@settings(max_examples=300, deadline=None)
def test_a_run_interrupted_anywhere_sees_what_the_uninterrupted_one_sees(plan, data):
    stop = data.draw(st.integers(0, plan.max_steps), "steps before the interruption")
    before, after = (data.draw(st.integers(1, 6), name) for name in ("ranks before", "ranks after"))
    cut = replace(plan, micro_batch_size=data.draw(st.integers(1, 7), "micro_batch_size after"))
    whole = [*computed(plan, 1, plan.max_steps, 1)]
    assert [*computed(plan, 1, stop, before), *computed(cut, stop + 1, plan.max_steps, after)] == whole
    assert sum(len(ids) for _, ids, *_ in whole) == whole[-1][3], "no sample is missing or told twice"


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


def test_starting_at_step_a_million_is_the_work_of_starting_at_step_ten():
    work_to_start_at(1)  # imports what NumPy puts off until it is used
    calls, orders = work_to_start_at(10)
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
    assert ids.tolist() == plan.step(1).micro_batches[0].tolist()
