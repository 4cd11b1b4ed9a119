"""The runs of the plain Hugging Face Trainer, with one process and several."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from onecurve.parity.forms import ONE_PROCESS, Form
from onecurve.parity.hf_arguments import DEEPSPEED
from onecurve.parity.request import Request
from onecurve.parity.running import Launched, launch
from onecurve.parity.verdict import Row, measure

_SEVERAL = ("ddp", "zero2")
_RANKS = 2


def peer_rows(request: Request, one: Launched, start: Path, num_gpus: int, say: Callable[[str], None]) -> Iterator[Row]:
    """Yield the Trainer on one process against onecurve's one process, and on two ranks against its own; never judged.

    Args:
        request: The comparison.
        one: onecurve's one process.
        start: The checkpoint all start from.
        num_gpus: CUDA devices; none: the CPU.
        say: Gets a line as each run ends.
    """
    size = one.form.micro_batch_size
    alone = _run(Form(ONE_PROCESS, 1, size), request, start, say)
    yield _named(measure(alone, one, start, judged=False, note="its sampler draws another order"))
    for form in (Form(strategy, _RANKS, size) for strategy in _SEVERAL):
        if alone.exit_code or 0 < num_gpus < _RANKS:
            why = f"this machine has {num_gpus} GPU(s)" if num_gpus else "it did not run on one process"
            yield Row(f"HF {form.name}", size, "HF one process", 0.0, note=f"not run: {why}")
        else:
            row = _named(measure(_run(form, request, start, say), alone, start, judged=False))
            yield replace(row, against="HF one process")


def _named(row: Row) -> Row:
    return replace(row, form=f"HF {row.form}", passed=None)


def _run(form: Form, request: Request, start: Path, say: Callable[[str], None]) -> Launched:
    folder = request.work_dir / f"hf-{form.folder}"
    folder.mkdir(parents=True, exist_ok=True)
    options = []
    if form.strategy == "zero2":
        options = ["--deepspeed_config_file", str(folder / "deepspeed.json")]
        (folder / "deepspeed.json").write_text(json.dumps(DEEPSPEED), encoding="utf-8")
    words = [str(start), str(folder), str(request.steps), *request.argv, "--output_dir", str(folder / "unused")]
    words += ["--train.micro_batch_size", str(form.micro_batch_size), "--train.resume", "never"]
    run = launch(form, folder, ["-m", "onecurve.parity.hf_trainer", *words], options)
    say(f"HF {form.name}: {run.seconds:.0f} s{f', exit code {run.exit_code}' if run.exit_code else ''}")
    return run
