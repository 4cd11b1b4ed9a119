"""The comparison itself: which runs are started, in which order, and what each is compared with."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from shutil import rmtree

import torch

from onecurve.checkpoint import read_state
from onecurve.errors import ConfigError, TrainingError
from onecurve.machine.accelerator import own_accelerator
from onecurve.parity.distance import distance, first_moment, num_clipped
from onecurve.parity.dropout import active_dropout
from onecurve.parity.forms import ONE_PROCESS, Form, held
from onecurve.parity.peer import peer_rows
from onecurve.parity.request import Request
from onecurve.parity.running import Launched, Trainer
from onecurve.parity.verdict import Parting, Row, first_parting, measure
from onecurve.preflight import Checked


@dataclass
class Report:
    """What was found."""

    argv: list[str]
    steps: int
    """Trained; fewer than asked for where the recipe's run is shorter."""
    tolerance: float
    device: str
    versions: dict[str, str]
    dropout: list[str]
    """The recipe's active dropout settings."""
    losses: tuple[float, float]
    """Of one process: at step 1 and at the last."""
    clipped: int
    """Its steps whose gradient was longer than optim.max_grad_norm."""
    rows: list[Row] = field(default_factory=list)
    not_held: list[str] = field(default_factory=list)
    """Forms that this machine cannot hold."""

    @property
    def passed(self) -> bool:
        """Whether every row that is judged passed."""
        return all(row.passed is not False for row in self.rows)


def compare(request: Request, checked: Checked, sizes: list[int], say: Callable[[str], None]) -> Report:
    """Train the recipe's first steps in every form and compare each with one process of the same micro-batch size.

    Dropout masks belong to a micro-batch's place in its step, so that only runs of the same split draw the same ones;
    one process of another split is judged against the first only where no dropout is active.

    Args:
        request: What to compare.
        checked: The recipe.
        sizes: Micro-batch sizes.
        say: Gets a line as each run ends.

    Raises:
        UserError: One process alone already ends so.
        TrainingError: One process fails.
    """
    dropout = active_dropout(checked.recipe, checked.task)
    return _Comparison(request, checked, dropout, say).report(sizes)


class _Comparison:
    def __init__(self, request: Request, checked: Checked, dropout: list[str], say: Callable[[str], None]) -> None:
        self.request, self.recipe, self.dropout, self.say = request, checked.recipe, dropout, say
        self.trainer = Trainer(request.argv, request.steps, request.work_dir, checked.recipe.train.cut_by)
        self.again: dict[tuple[Form, int], Launched] = {}
        """Runs trained anew up to a step at which one parted."""

    def report(self, sizes: list[int]) -> Report:
        first = self._train(Form(ONE_PROCESS, 1, sizes[0]), None)
        if first.exit_code == ConfigError.exit_code:
            raise ConfigError(first.reason)
        if first.exit_code:
            raise TrainingError(f"one process ended with exit code {first.exit_code}: {first.reason}")
        self.start = first.checkpoint(0)
        curve, accelerator = first.curve, own_accelerator()
        found = Report(
            argv=self.request.argv,
            steps=len(curve),
            tolerance=self.request.tolerance,
            device=accelerator.name() if accelerator else "cpu",
            versions=read_state(self.start)["versions"],
            dropout=self.dropout,
            losses=(curve[0]["loss"], curve[-1]["loss"]),
            clipped=num_clipped(curve, self.recipe.optim.max_grad_norm),
        )
        num_gpus = torch.accelerator.device_count()
        for size in sizes:
            one = first
            if size != sizes[0]:
                one = self._train(Form(ONE_PROCESS, 1, size), self.start)
                found.rows.append(self._row(one, first, judged=not self.dropout, note=self._masks()))
            forms, not_held = held(self.request.strategies, self.request.ranks, size, num_gpus)
            found.not_held += not_held
            found.rows += self._rows(forms, one)
        if self.request.against == "HF":
            found.rows += peer_rows(self.request, first, self.start, num_gpus, self.say)
        return found

    def _rows(self, forms: list[Form], one: Launched) -> Iterator[Row]:
        """Compare forms with one process of their micro-batch size."""
        for form in forms if not one.exit_code else ():
            run = self._train(form, self.start)
            yield self._row(run, one, judged=True, note=self._idle(form))
            self._clear(run.folder)

    def _row(self, run: Launched, one: Launched, judged: bool, note: str) -> Row:
        row = measure(run, one, self.start, judged, note)
        if row.loss is None or not judged:
            return row
        parting = first_parting(row, run, one, self.request.tolerance)
        if parting is None:
            return replace(row, passed=row.trained)
        return replace(row, passed=False, parting=self._with_tensor(parting, run, one))

    def _with_tensor(self, parting: Parting, run: Launched, one: Launched) -> Parting:
        """Name the tensor, training both again up to the step where no checkpoint of it is left."""
        ours, theirs = (self._saved(side, parting.step) for side in (run, one))
        if not (ours.is_dir() and theirs.is_dir()):
            return parting
        kind = first_moment(theirs) or "param"
        found = distance(ours, theirs, kind)
        return replace(parting, tensor=found.tensor, kind=kind, share=found.share)

    def _saved(self, run: Launched, step: int) -> Path:
        if not run.checkpoint(step).is_dir() and (run.form, step) not in self.again:
            self.again[run.form, step] = self._train(run.form, self.start, stop=step)
        return self.again.get((run.form, step), run).checkpoint(step)

    def _train(self, form: Form, start: Path | None, stop: int | None = None) -> Launched:
        run = self.trainer.train(form, start, also=[0, 1], stop=stop)
        until = f" again, until step {stop}" if stop else ""
        failed = f", exit code {run.exit_code}" if run.exit_code else ""
        self.say(f"{form.name}, micro-batch {form.micro_batch_size}{until}: {run.seconds:.0f} s{failed}")
        return run

    def _masks(self) -> str:
        if not self.dropout:
            return ""
        return f"another split draws other dropout masks ({', '.join(self.dropout)}), so it is not judged"

    def _idle(self, form: Form) -> str:
        if self.recipe.train.micro_batch_tokens:
            return ""
        busy = self.recipe.train.global_batch_size // form.micro_batch_size
        return f"{form.ranks - busy} ranks have no micro-batch" if busy < form.ranks else ""

    def _clear(self, folder: Path) -> None:
        if not self.request.keep:
            rmtree(folder, ignore_errors=True)
