"""The run of a range test: a program of its own, started on every rank as train.py is.

`python -m onecurve.range_test.program FROM TO STEPS RECIPE [--section.key value ...]` leaves the metrics of its steps
in the recipe's output_dir, and no checkpoint or model.
"""

import sys
from dataclasses import replace

from onecurve.optim import build_optimizer
from onecurve.preflight import heavy_imports, preflight
from onecurve.range_test.curve import RISE, Running, rate_at
from onecurve.range_test.request import Asked
from onecurve.run.lifecycle import Decision as Stop
from onecurve.run.lifecycle import Run, execute, leave
from onecurve.strategies import build_strategy

_FAULTS = {"loss": "the loss is not finite", "gradient": "the gradient is not finite"}


class NoCheckpoints:
    """Begins at the beginning, and has nothing to save."""

    def resume(self) -> int:
        return 0

    def rescue(self, step: int) -> str:
        return ""

    def let_finish(self, seconds: float) -> None:
        pass


def main(argv: list[str], run: Run) -> None:
    """Train with a rate that rises from step to step; up to the loop, in the order of train.py."""
    first, last, steps, *words = argv
    asked = Asked(float(first), float(last), int(steps))
    checked = asked.of_run(preflight(words))
    recipe, task = checked.recipe, checked.task
    with heavy_imports(checked):
        from onecurve.data import load_data, plan_run
        from onecurve.evaluation import annotated, scorable
        from onecurve.faults import OutOfMemory, fit
        from onecurve.machine.distributed import start
        from onecurve.model.loading import check_model, load_model
        from onecurve.model.packing import pack
        from onecurve.model.reach import probe
        from onecurve.model.reading import Reading
        from onecurve.regularization.building import build_objective
        from onecurve.rollouts import loaders_of
        from onecurve.run.history import History
        from onecurve.step import train_step
        from onecurve.summary import describe_run
        from onecurve.tracking import Tracker

        precision, remark = check_model(recipe)
    reading = Reading.of(recipe, task)
    data = scorable(load_data(recipe.data, task, reading, recipe.seed), recipe, task)
    data = replace(data, eval=None, test=None)  # loaded for their labels only
    plan, objective = plan_run(data.splits, recipe), build_objective(task, recipe, data.survey, data.label_counts)
    accelerator = start(recipe.tracking.trackers, recipe.output_dir, recipe.train)
    model = load_model(recipe, task, reading.config, data.survey, precision, accelerator.device)
    strategy, run.explain = build_strategy(accelerator, recipe, precision), OutOfMemory(recipe, model, accelerator)
    unused, partial = probe(model, recipe, task, data.train, reading, precision, accelerator)
    strategy.prepare(model, build_optimizer(model, recipe.optim), plan.most_passes(accelerator.num_processes), partial)
    packed = pack(strategy, recipe, precision, task, data.splits, reading)
    data = annotated(data, task, recipe, checked.directory, strategy, reading, accelerator)
    loaders = loaders_of(data.splits, checked, strategy, reading, accelerator, objective)
    checked, recipe, plan = fit(checked, plan, strategy, loaders["train"])
    run.begin(checked.directory, checked.config, recipe.train.hang_timeout, NoCheckpoints(), lambda step: Stop())
    tracker = Tracker(checked.directory, accelerator, recipe, plan, "", None)
    tracker.open(precision, remark, unused, packed, describe_run(recipe, task, data, plan, model, reading, accelerator))
    tracker.say(_describe_passes(asked.steps / plan.steps_per_epoch))
    history, running, why = History(recipe.train), Running(), ""
    while (step := plan.after(run.step)) and not why:
        lr = rate_at(step.number, asked.first, asked.last, asked.steps)
        outcome = train_step(strategy, loaders["train"], step, lr, recipe.seed, history)
        if outcome["fault"]:
            why = f"at a rate of {lr:.3g} {_FAULTS[outcome['fault']]}"
            continue
        run.step = tracker.train(step.number, outcome)
        running.take(outcome["loss"])
        if running.has_risen:
            why = f"at a rate of {lr:.3g} the running average of the loss is above {RISE:g} times its lowest value"
    tracker.bar.close()
    tracker.event("end", run.step, reason=why)


def _describe_passes(passes: float) -> str:
    if passes <= 1:
        return ""
    return f"the test reads the data {passes:.1f} times: losses fall of what was seen before, too. Fewer --steps help"


if __name__ == "__main__":
    leave(execute(main, sys.argv[1:]))
