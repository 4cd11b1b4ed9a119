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
    recipe, task, directory = checked.recipe, checked.task, checked.directory

    # The recipe can be meant: only now what takes seconds to import
    from onecurve.adapters import virtual_tokens
    from onecurve.data import BatchPlan, Loader, load_data
    from onecurve.distributed import resolve_precision, start
    from onecurve.evaluation import Best, evaluate
    from onecurve.export import save_model
    from onecurve.model import check_model, load_model
    from onecurve.step import train_step
    from onecurve.summary import describe_run, model_card
    from onecurve.tokenizer import Reading
    from onecurve.tracking import Tracker

    precision, remark = resolve_precision(recipe.train)
    check_model(recipe)
    reading = Reading(recipe.model, recipe.data.max_length, virtual_tokens(recipe.peft))
    data = load_data(recipe.data, task, lambda: reading.tokenizer, lambda _: reading.max_length)
    plan = BatchPlan(data.train.num_items, recipe.seed, recipe.train.global_batch_size, recipe.train.micro_batch_size)
    max_steps = recipe.train.max_steps or plan.num_steps(recipe.train.epochs or 1)

    accelerator = start(recipe.tracking.trackers, recipe.output_dir)
    model = load_model(recipe, task, reading.config, data.survey, precision)
    strategy = build_strategy(accelerator, recipe, precision)
    strategy.prepare(model, build_optimizer(model, recipe.optim), plan.most_passes(accelerator.num_processes))
    loaders = {split.name: Loader(split, task, reading.tokenizer.pad_token_id, accelerator) for split in data.splits}

    run.begin(directory, checked.config)
    tracker = Tracker(directory, accelerator, recipe, max_steps)
    tracker.say(remark, describe_run(recipe, task, data, plan, model, reading.tokenizer, accelerator.num_processes))
    best = Best(task, recipe.eval, strategy)
    for step in plan.steps(1, max_steps):
        lr = lr_at(step.number, max_steps, recipe.optim)
        tracker.train(step.number, train_step(strategy, loaders["train"], step, lr, recipe.seed))
        run.step = step.number
        best.after(step.number)
        if data.eval and due(step.number, recipe.eval.every, max_steps):
            scores = evaluate(strategy, loaders["eval"], recipe.eval_micro_batch_size, data.survey)
            tracker.scores("eval", step.number, scores)
            best.consider(step.number, scores)
            if best.exhausted:
                tracker.say(f"stopped early: {best}")
                break

    if best.step < run.step:  # the last weights beside the best ones
        card = model_card(recipe, data, checked.config, run.step, {"eval": scores})
        save_model(strategy, accelerator, reading.tokenizer, directory.model_last, card)
        best.restore()
    final = {"eval": best.scores}
    if data.test:
        final["test"] = evaluate(strategy, loaders["test"], recipe.eval_micro_batch_size, data.survey)
        tracker.scores("test", best.step, final["test"])
    card = model_card(recipe, data, checked.config, best.step, final)
    save_model(strategy, accelerator, reading.tokenizer, directory.model, card)
    tracker.close(best.step)


if __name__ == "__main__":
    leave(execute(main, sys.argv[1:]))
