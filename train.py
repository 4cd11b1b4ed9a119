"""Train a model: `accelerate launch train.py RECIPE.yaml [--section.key value ...]`.

This file is the table of contents: read it top-down, then open the module each line names.
"""

import sys

from onecurve.optim import build_optimizer, lr_at
from onecurve.preflight import preflight
from onecurve.run import Run, due, execute, leave
from onecurve.strategies import build_strategy


def main(argv: list[str], run: Run) -> None:
    """Train, evaluate and save what the recipe describes."""
    checked = preflight(argv)
    recipe, task = checked.recipe, checked.task

    # The recipe can be meant: only now what takes seconds to import
    from onecurve.adapters import virtual_tokens
    from onecurve.data import Loader, load_data, plan_run
    from onecurve.distributed import start
    from onecurve.evaluation import Best, evaluate
    from onecurve.export import Exporter
    from onecurve.model import check_model, load_model
    from onecurve.resume import Checkpoints
    from onecurve.step import train_step
    from onecurve.summary import describe_run
    from onecurve.tokenizer import Reading
    from onecurve.tracking import Tracker

    precision, remark = check_model(recipe)
    reading = Reading(recipe.model, recipe.data.max_length, virtual_tokens(recipe.peft))
    data = load_data(recipe.data, task, lambda: reading.tokenizer, lambda _: reading.max_length)
    plan = plan_run(data.train.num_items, recipe)

    accelerator = start(recipe.tracking.trackers, recipe.output_dir)
    model = load_model(recipe, task, reading.config, data.survey, precision)
    strategy = build_strategy(accelerator, recipe, precision)
    strategy.prepare(model, build_optimizer(model, recipe.optim), plan.most_passes(accelerator.num_processes))
    loaders = {split.name: Loader(split, task, reading.tokenizer.pad_token_id, accelerator) for split in data.splits}

    best = Best(task, recipe.eval, strategy)
    checkpoints = Checkpoints(checked, data.fingerprint, strategy, best, accelerator)
    run.begin(checked.directory, checked.config, after=checkpoints.resume())

    tracker = Tracker(checked.directory, accelerator, recipe, plan.max_steps, checkpoints.resumed)
    export = Exporter(checked, data, strategy, accelerator, reading.tokenizer)
    tracker.say(remark, describe_run(recipe, task, data, plan, model, reading.tokenizer, accelerator.num_processes))
    for step in plan.steps(run.step + 1, plan.max_steps):
        lr = lr_at(step.number, plan.max_steps, recipe.optim)
        tracker.train(step.number, train_step(strategy, loaders["train"], step, lr, recipe.seed))
        run.step = step.number
        if data.eval and due(step.number, recipe.eval.every, plan.max_steps):
            scores = evaluate(strategy, loaders["eval"], recipe.eval_micro_batch_size, data.survey)
            best.consider(step.number, tracker.scores("eval", step.number, scores))
        if checkpoints.due(step.number, plan.max_steps):
            tracker.event("checkpoint", step.number, stall_seconds=checkpoints.save(step.number))
        if best.exhausted or step.number == recipe.train.stop_after:
            break
    checkpoints.wait()
    if run.stops_at(recipe.train.stop_after, plan.max_steps):
        return

    chosen, final = best.step or run.step, {"eval": best.scores}
    if chosen < run.step:  # the last weights beside the best ones
        export("model-last", run.step, {"eval": best.last_scores})
        best.restore()
    if data.test:
        scores = evaluate(strategy, loaders["test"], recipe.eval_micro_batch_size, data.survey)
        final["test"] = tracker.scores("test", chosen, scores)
    export("model", chosen, final)
    tracker.close(chosen)


if __name__ == "__main__":
    leave(execute(main, sys.argv[1:]))
