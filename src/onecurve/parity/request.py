"""The requested comparison, checked before anything heavy is imported."""

from dataclasses import dataclass
from pathlib import Path

from onecurve.config import TrainSection
from onecurve.errors import ConfigError
from onecurve.parity.forms import check_strategies
from onecurve.preflight import Checked, preflight
from onecurve.tasks import find_task, task_names


@dataclass(frozen=True)
class Request:
    """What the user wants compared."""

    argv: list[str]
    """The recipe and overrides."""
    strategies: list[str]
    ranks: list[int]
    micro_batch_sizes: list[int]
    """In tokens where the recipe cuts by them. Empty: the recipe's, and half of it where that divides the global
    batch."""
    steps: int
    tolerance: float
    work_dir: Path
    keep: bool
    """Whether checkpoints stay once they are compared."""
    against: str | None = None
    """HF, or nothing."""

    def check(self) -> tuple[Checked, list[int]]:
        """Return the recipe as its runs will be launched, and the micro-batch sizes to compare.

        Raises:
            UserError: An invalid recipe, an unknown form, or a size that does not divide the global batch.
        """
        check_strategies(self.strategies)
        if self.work_dir.is_file() or (self.work_dir.is_dir() and any(self.work_dir.iterdir())):
            raise ConfigError(f"{str(self.work_dir)!r} is not an empty folder.", where="--work_dir")
        own = [*self.argv, "--output_dir", str(self.work_dir / "unused"), "--train.resume", "never"]
        checked = preflight(own)
        train = checked.recipe.train
        if self.against and not checked.task.has_models_loss:
            known = [one for one in task_names() if find_task(one).has_models_loss]
            name = checked.recipe.task.name
            raise ConfigError(
                f"the Trainer takes the loss that the model itself returns, which is not that of {name}. "
                f"It can be compared on {', '.join(known)}.",
                where="--against",
                fix="Remove --against to compare the launch forms alone."
                + (" Where that is your task's loss, set has_models_loss in its class." if ":" in name else ""),
            )
        if self.against and train.micro_batch_tokens:
            raise ConfigError(
                "the Trainer cuts by examples, and the recipe by tokens.", where="--against", fix="Set "
                "train.micro_batch_tokens to null and train.micro_batch_size to a number."
            )  # fmt: skip
        sizes = list(dict.fromkeys(self.micro_batch_sizes)) or _default_sizes(train)
        for size in sizes:
            preflight([*own, f"--{train.cut_by}", str(size)])
        return checked, sizes


def _default_sizes(train: TrainSection) -> list[int]:
    if train.micro_batch_tokens:  # half of it may be too little for an example
        return [train.micro_batch_tokens]
    half = train.examples_a_pass // 2
    return [train.examples_a_pass, *([half] if half and train.global_batch_size % half == 0 else [])]
