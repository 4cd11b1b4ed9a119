"""The requested range test: checked before anything heavy is imported, and the recipe that its run has."""

from dataclasses import dataclass, replace
from math import isfinite

from onecurve.config import EvalSection, OptimSection, TrackingSection
from onecurve.errors import ConfigError
from onecurve.preflight import Checked, read
from onecurve.tasks.base import RollsOut

_FEWEST = 10
"""Steps of a test; fewer give no curve."""


@dataclass(frozen=True)
class Asked:
    """Which rates are tried, and in how many steps."""

    first: float
    last: float
    steps: int

    def check(self, argv: list[str]) -> Checked:
        """Read the recipe and check the test.

        Args:
            argv: The recipe and overrides.

        Raises:
            UserError: An invalid recipe, range or number of steps, or a recipe that no rate can be found for.
        """
        for where, value in (("--from", self.first), ("--to", self.last)):
            if not (isfinite(value) and value > 0):
                raise ConfigError(f"must be a number above 0; got {value:g}.", where=where)
        if self.last <= self.first:
            raise ConfigError(f"must be above --from ({self.first:g}); got {self.last:g}.", where="--to")
        if self.steps < _FEWEST:
            raise ConfigError(f"must be {_FEWEST} or more, to tell a curve; got {self.steps}.", where="--steps")
        checked = read(argv)
        resume = checked.recipe.train.resume
        if resume not in ("auto", "never"):
            raise ConfigError(
                f"the test starts from the model itself, not from the checkpoint {resume!r}.",
                where="train.resume",
                fix="Add --train.resume never.",
            )
        if isinstance(checked.task, RollsOut):
            raise ConfigError(
                f"the loss of {checked.recipe.task.name} does not fall as its model learns: it tells no rate.",
                where="task.name",
                fix="Compare the rewards of a few short runs.",
            )
        if checked.recipe.regularization.unfreeze_every:
            raise ConfigError(
                "blocks that thaw while the rate rises would be tried at high rates only.",
                where="regularization.unfreeze_every",
                fix="Add --regularization.unfreeze_every null; the test then trains all of them.",
            )
        return checked

    def of_run(self, checked: Checked) -> Checked:
        """Return what the test's run is: the recipe's, without evaluation, averages, checkpoints and trackers.

        Its rates are not the schedule's: they are set step by step.
        """
        recipe = checked.recipe
        own = OptimSection.model_fields
        optim = {name: own[name].default for name in ("warmup_steps", "decay_steps", "min_lr_ratio")}
        length = {"max_steps": self.steps, "epochs": None, "stop_after": None, "time_limit": None}
        sections = {
            "optim": recipe.optim.model_copy(update={**optim, "schedule": "constant", "lr": self.last}),
            "train": recipe.train.model_copy(update={**length, "on_spike": "ignore"}),
            "regularization": recipe.regularization.model_copy(update={"average": None}),
            "eval": EvalSection(),
            "checkpoint": recipe.checkpoint.model_copy(update={"also": []}),
            "tracking": TrackingSection(),
        }
        return replace(checked, recipe=recipe.model_copy(update=sections))

    def remarks(self, checked: Checked) -> list[str]:
        """Say what of the recipe the test does otherwise than its run would."""
        recipe = checked.recipe
        told = []
        if recipe.optim.warmup_steps or recipe.optim.schedule != "constant":
            told.append("optim.schedule and optim.warmup_steps are not used: the rate is that of the test at each step")
        if (decay := recipe.regularization.layer_decay) is not None:
            told.append(
                f"rates are the head's: each block below has {decay:g} times that of the one above, as in the run"
            )
        return told
