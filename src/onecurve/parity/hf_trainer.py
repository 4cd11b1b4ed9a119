"""The plain Hugging Face Trainer on a recipe's model, weights and data: a program of its own.

`python -m onecurve.parity.hf_trainer START FOLDER STEPS RECIPE [--section.key value ...]` leaves in FOLDER what
`train.py` leaves: metrics.jsonl with a line a step, and checkpoints of the trained parameters after step 1 and the
last.
"""

import json
import os
import sys
from pathlib import Path

from onecurve.errors import LaunchError, UserError
from onecurve.machine.distributed import asked_world_size, launched_rank, uses_deepspeed
from onecurve.parity.hf_arguments import training_arguments
from onecurve.preflight import preflight
from onecurve.run.lifecycle import leave


def main(argv: list[str]) -> int:
    """Train; return the exit code."""
    start, folder, steps, *recipe = argv
    try:
        _train(recipe, Path(start), Path(folder), int(steps))
    except UserError as error:
        print(f"hf_trainer: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


def _train(argv: list[str], start: Path, folder: Path, steps: int) -> None:
    if asked_world_size() == 1:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # with several, one process would use DataParallel
    checked = preflight(argv)
    recipe, task = checked.recipe, checked.task

    import torch
    import transformers

    from onecurve.checkpoint import load
    from onecurve.data import load_data, plan_run
    from onecurve.data.collation import Collation
    from onecurve.model.loading import check_model, load_model
    from onecurve.model.reading import Reading
    from onecurve.parity.hf_recording import Examples, Recorder, collator, pieces, recording

    transformers.logging.set_verbosity_error()
    precision, _ = check_model(recipe)
    reading = Reading.of(recipe, task)
    data = load_data(recipe.data, task, reading, recipe.seed)
    ranks = asked_world_size()
    words = training_arguments(recipe, precision, ranks, plan_run(data.splits, recipe).max_steps, folder)
    if not torch.accelerator.is_available():
        # Told to use the CPU it would leave DeepSpeed out
        words |= {"ddp_backend": "gloo" if ranks > 1 else None, "use_cpu": not uses_deepspeed()}
    arguments = transformers.TrainingArguments(**words)
    if arguments.world_size != ranks:
        raise LaunchError(f"{ranks} processes were started, and the Trainer sees {arguments.world_size}.")
    model = load_model(recipe, task, reading.config, data.survey, precision)
    load(start, pieces(model))

    recorder = Recorder(folder, steps)
    trainer = recording(recorder)(
        model=model,
        args=arguments,
        train_dataset=Examples(data.train),
        data_collator=collator(Collation(data.train, task, reading), recipe.seed, recorder),
        callbacks=[recorder],
    )
    trainer.train()
    lines = recorder.lines(trainer.state.log_history)
    if launched_rank() == 0:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
