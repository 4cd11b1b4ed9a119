"""The interface of a task whose model learns from what it writes itself."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from onecurve.config import Recipe
    from onecurve.content.completions import Completion
    from onecurve.tasks.base import Example, OtherModel, Processing, Row


@runtime_checkable
class RollsOut(Protocol):
    """A task whose examples are prompts: in each step the model answers them, and learns from its completions.

    `collate` takes what `answered` returned. A step of `train.global_batch_size` completions has so many prompts that
    each gets `completions`; those of one prompt are a group.
    """

    @property
    def completions(self) -> int:
        """Completions of each prompt in training."""

    @property
    def steps_per_generation(self) -> int:
        """Of how many steps the completions are drawn at once, by the model before the first of them."""

    @property
    def replay(self) -> str | None:
        """The folder of a run whose completions are taken, in place of new ones."""

    @property
    def server(self) -> str | None:
        """The address of the vLLM server that draws completions; None: the model does."""

    @property
    def has_reference(self) -> bool:
        """Whether the loss reads what the model before step 1 says of a completion."""
        ...

    @property
    def reward_names(self) -> Sequence[str]:
        """All rewards, in the recipe's order, once `check_rollouts` was called."""

    @property
    def reward_models(self) -> "Mapping[str, OtherModel]":
        """Those of the rewards that models say, by name, once `check_rollouts` was called."""

    def check_rollouts(self, recipe: "Recipe", identify: "Callable[[OtherModel], str]") -> None:
        """Find what a recipe names, such as reward functions, and check that it all fits; no weights are loaded.

        Args:
            recipe: The run.
            identify: Tells a model's weights from others.

        Raises:
            ConfigError: It does not.
        """

    def drawing(self, training: bool) -> Mapping[str, Any]:
        """Return by transformers' names how completions are drawn, in training and in evaluation."""
        ...

    def write_on(self, model: Any, examples: "Sequence[Example]", reading: "Processing", **options: Any) -> "Tensor":
        """Return what a model writes after each prompt, int64 [prompts, longest]; see `Generates.generate`."""
        ...

    def rewarded(self, examples: "Sequence[Example]", completions: "Sequence[Completion]") -> "list[Completion]":
        """Return completions with the rewards of the user's functions beside those that they have.

        Args:
            examples: The prompt of each.
            completions: All of a step, groups together, in plan order.

        Raises:
            RewardError: A reward function failed.
        """
        ...

    def judged(self, examples: "Sequence[Example]", completions: "Sequence[Completion]") -> "list[Row]":
        """Return each completion with its prompt as a reward model reads them: `prompt`, `chosen`, `system?`, `tools?`.

        Args:
            examples: The prompt of each.
            completions: As in `rewarded`.
        """
        ...

    def answered(
        self, examples: "Sequence[Example]", completions: "Sequence[Completion]", training: bool
    ) -> "list[Example]":
        """Return an example of each completion, with its advantage within its group.

        Args:
            examples: The prompt of each.
            completions: With rewards; all of a step, groups together.
            training: Else there are no groups.
        """
        ...

    def stand_in(self, example: "Example") -> "Example":
        """Return a prompt with some completion, for a pass whose loss is of no interest."""
        ...

    def facts(self, examples: "Sequence[Example]") -> dict[str, float]:
        """Return what there is to tell of a step's completions, by TRL's names.

        Args:
            examples: What `answered` returned of them.
        """
        ...
