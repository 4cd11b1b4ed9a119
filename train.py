"""Train a model: `accelerate launch train.py RECIPE.yaml [--section.key value ...]`.

This file is the table of contents: read it top-down, then open the module each line names.
"""

import sys
from pathlib import Path

from onecurve.config import dump_recipe, load_recipe
from onecurve.optim import build_optimizer, check_optim, lr_at
from onecurve.run import Run, due, execute
from onecurve.run_directory import RunDirectory
from onecurve.strategies import build_strategy, check_strategy
from onecurve.tasks import load_task


def main(argv: list[str], run: Run) -> None:
    """Train, evaluate and save what the recipe describes."""
    recipe, sources = load_recipe(argv)
    task = load_task(recipe.task)
    config = dump_recipe(recipe, sources, {"task": task.settings.model_dump(), "optim": check_optim(recipe.optim)})
    check_strategy(recipe)
    directory = RunDirectory(Path(recipe.output_dir))
    directory.check(recipe.train.resume)

    # The recipe is good; only now what takes seconds to import
    from onecurve.adapters import add_adapter, check_adapter
    from onecurve.data import BatchPlan, Loader, load_data
    from onecurve.distributed import resolve_precision, start
    from onecurve.evaluation import Best, evaluate
    from onecurve.export import save_model
    from onecurve.model import load_model
    from onecurve.seeds import start_stream
    from onecurve.step import train_step
    from onecurve.strategies.snapshot import Snapshot
    from onecurve.summary import describe_run, model_card
    from onecurve.tokenizer import Reading
    from onecurve.tracking import Tracker

    check_adapter(recipe.peft)
    precision, remark = resolve_precision(recipe.train)
    reading = Reading(recipe.model, recipe.data.max_length)
    data = load_data(recipe.data, task, lambda: reading.tokenizer, lambda _: reading.max_length)
    plan = BatchPlan(data.train.num_items, recipe.seed, recipe.train.global_batch_size, recipe.train.micro_batch_size)
    max_steps = recipe.train.max_steps or plan.num_steps(recipe.train.epochs or 1)

    accelerator = start(recipe.tracking.trackers, recipe.output_dir)
    model, new_modules = load_model(recipe, task, reading.config, data.survey, precision)
    start_stream(recipe.seed, "adapter")
    model = add_adapter(model, recipe.peft, task_type=task.peft_task_type, new_modules=new_modules)
    strategy = build_strategy(accelerator, recipe, precision)
    strategy.prepare(model, build_optimizer(model, recipe.optim), plan.most_passes(accelerator.num_processes))

    run.begin(directory, config)
    tracker = Tracker(directory, accelerator, recipe, max_steps)
    tracker.say(describe_run(recipe, task, data, plan, model, reading.tokenizer, accelerator.num_processes) + remark)
    loaders = {s.name: Loader(s, task, reading.tokenizer.pad_token_id, accelerator) for s in (data.train, data.eval, data.test) if s}
    eval_size, scores = recipe.eval.micro_batch_size or recipe.train.micro_batch_size, {}
    best, snapshot = Best.of(task, recipe.eval), Snapshot(strategy)

    for step in plan.steps(1, max_steps):
        lr = lr_at(step.number, max_steps, recipe.optim)
        tracker.train(step.number, train_step(strategy, loaders["train"], step, lr, recipe.seed))
        run.step = step.number
        if data.eval and due(step.number, recipe.eval.every, max_steps):
            scores["eval"] = evaluate(strategy, loaders["eval"], eval_size, data.survey)
            tracker.scores("eval", step.number, scores["eval"])
            if best.improves(step.number, scores["eval"]):
                snapshot.take()
            if best.exhausted:
                break

    if best.step not in (0, run.step):  # the last weights beside the best ones
        save_model(directory.model_last, strategy, accelerator, reading.tokenizer, model_card(recipe, data, config, run.step, scores))
        snapshot.restore()
    chosen = best.step or run.step
    if data.test:
        scores = {"eval": best.scores or scores.get("eval", {}), "test": evaluate(strategy, loaders["test"], eval_size, data.survey)}
        tracker.scores("test", chosen, scores["test"])
    save_model(directory.model, strategy, accelerator, reading.tokenizer, model_card(recipe, data, config, chosen, scores))
    tracker.close(chosen)


if __name__ == "__main__":
    sys.exit(execute(main, sys.argv[1:]))
