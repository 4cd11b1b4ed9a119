"""Train a model: `accelerate launch train.py RECIPE.yaml [--section.key value ...]`.

This file is the table of contents: read it top-down, then open the module each line names.
"""

import sys

from onecurve.optim import build_optimizer, lr_at
from onecurve.preflight import heavy_imports, preflight
from onecurve.run.lifecycle import Run, execute, leave
from onecurve.strategies import build_strategy


def main(argv: list[str], run: Run) -> None:
    """Train, evaluate and save what the recipe describes."""
    checked = preflight(argv)
    recipe, task = checked.recipe, checked.task
    with heavy_imports(checked):  # the recipe is valid: only now what takes seconds
        from onecurve.data import load_data, plan_run
        from onecurve.evaluation import Dev, annotated, scorable, scoring, write_predictions
        from onecurve.export.model_folder import Exporter
        from onecurve.faults import BadSteps, BlackBox, OutOfMemory, Stopping, fit
        from onecurve.machine.distributed import start
        from onecurve.model.loading import check_model, load_model
        from onecurve.model.packing import pack
        from onecurve.model.reach import probe
        from onecurve.model.reading import Reading
        from onecurve.regularization.building import build_objective
        from onecurve.resume import Checkpoints
        from onecurve.rollouts import loaders_of
        from onecurve.step import train_step
        from onecurve.summary import describe_run
        from onecurve.tracking import Tracker

        precision, remark = check_model(recipe)  # which imports PEFT where the recipe asks for it
    reading = Reading.of(recipe, task)
    data = scorable(load_data(recipe.data, task, reading, recipe.seed), recipe, task)
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
    evaluate, best = scoring(strategy, recipe, task, data, loaders)
    checkpoints = Checkpoints(checked, data, plan, strategy, best, accelerator)
    stopping = Stopping(recipe.train, checked.directory, checkpoints, accelerator)
    run.begin(checked.directory, checked.config, recipe.train.hang_timeout, checkpoints, stopping.behind)
    tracker = Tracker(checked.directory, accelerator, recipe, checkpoints.plan, checkpoints.run_id, checkpoints.resumed)
    bad_steps = BadSteps(checkpoints, tracker, BlackBox(checked, strategy, loaders["train"], data.survey, reading))
    export = Exporter(checked, data, strategy, accelerator, reading.processor)
    dev = Dev(evaluate, best, tracker, loaders)
    tracker.open(precision, remark, unused, packed, describe_run(recipe, task, data, plan, model, reading, accelerator))
    dev.catch_up(checkpoints.unscored)
    while (step := checkpoints.plan.after(run.step)) and not (best.exhausted or run.asked.stop):
        lr = lr_at(step.number, checkpoints.plan.max_steps, recipe.optim)
        outcome = train_step(strategy, loaders["train"], step, lr, recipe.seed, checkpoints.history, stopping.requests)
        run.step = bad_steps(step, outcome) if outcome["fault"] else tracker.train(step.number, outcome)
        if run.step < step.number:  # gone back to a checkpoint
            continue
        scored = dev.after(step.number, checkpoints.plan.max_steps)
        run.asked = stopping.asked(step.number, None if scored else outcome.get("requests"))
        if run.asked.save or checkpoints.due(step.number):
            tracker.event("checkpoint", step.number, stall_seconds=checkpoints.save(step.number))
    checkpoints.wait(needed=bool(run.asked.stop))
    if run.asked.stop:
        return tracker.stop(run.step, run.asked.stop)
    chosen, final = best.settle(run.step, export, lambda: evaluate(loaders["eval"]), tracker.scores)
    if data.test:
        final["test"] = tracker.scores("test", chosen, evaluate(loaders["test"]))
    export("model", chosen, final)
    write_predictions(loaders, strategy, recipe, data.survey, checked.directory, final)
    tracker.close(chosen)


if __name__ == "__main__":
    leave(execute(main, sys.argv[1:]))
