"""What only some tasks can do; asked with `isinstance`, never by a task's name."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from onecurve.content.mixing import Mixing
    from onecurve.content.survey import Survey
    from onecurve.tasks.base import Answer, Batch, Example, Processing, Row, Task


@runtime_checkable
class Generates(Protocol):
    """A task whose models generate text."""

    def end_token(self, tokenizer: Any) -> int | None:
        """Return the token that the model learns to end with; None if it is unknown."""

    def prompt(self, row: "Row", reading: "Processing") -> "Example":
        """Encode what the model reads before it writes: exactly what stood before an answer in training."""

    def generate(self, model: Any, examples: "Sequence[Example]", reading: "Processing", **options: Any) -> list[str]:
        """Write on after each prompt and return the new text, special tokens left out.

        Args:
            model: A transformers or PEFT model.
            examples: What `prompt` returned.
            reading: Made them.
            **options: Of transformers' `generate`.
        """
        ...


@runtime_checkable
class Asked(Protocol):
    """A task whose trained models are asked something else than what its examples hold."""

    def question(self, row: "Row", reading: "Processing", truncate: bool) -> "Example":
        """Encode what a trained model is asked; with `truncate` no longer than `reading.max_length`.

        Raises:
            BadRow: The row asks nothing.
        """
        ...

    def replies(self, outputs: Any, batch: "Batch", reading: "Processing") -> "list[Answer]":
        """Return what the model says to each question of a batch."""
        ...


@runtime_checkable
class Votes(Protocol):
    """A task whose answers are made of many decisions, each by probabilities that several models can have a mean of."""

    def vote(self, outputs: Any, batch: "Batch", examples: "Sequence[Example]", survey: "Survey") -> "list[Answer]":
        """Return the probabilities behind each example's answer, by label name; arguments as of `answers`."""

    def elect(self, votes: "Sequence[Answer]") -> "Answer":
        """Return the answer to a row that the mean of several models' votes gives: all know the same labels."""


@runtime_checkable
class Writes(Generates, Protocol):
    """A task whose models write texts that evaluations compare with references."""

    @property
    def generation(self) -> Mapping[str, Any] | None:
        """What the recipe says of `generate`, by transformers' names; None: evaluations write nothing."""

    def generation_config(self, tokenizer: Any) -> dict[str, Any]:
        """Return what `generate` must know for the model to write as it learnt, such as a language to begin with."""
        ...

    def asked(self, row: "Row") -> "tuple[Row, str] | None":
        """Split a labelled row into what the model is asked and its reference; None where it has no text to compare.

        Raises:
            BadRow: The reference does not suit the settings.
        """

    def score_texts(self, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """Score (text, reference) of a whole split; the numbers are among `metric_names`."""
        ...


@runtime_checkable
class Transforms(Protocol):
    """A task whose examples are decoded, augmented or masked anew each time that they are read."""

    def transform(
        self, example: "Example", rng: "np.random.Generator", training: bool, reading: "Processing"
    ) -> "Example":
        """Return what `collate` takes of an example, which stays as it is; `num_items` does too.

        May run in a process of its own, and draws from `rng` alone.

        Args:
            example: What `encode` returned.
            rng: Keyed by the seed, the pass over the data and the example, so that draws depend on nothing else; in
                scoring by the split and the example, so that every scoring draws the same.
            training: Whether to augment.
            reading: Made the example.
        """
        ...


class OtherModel(NamedTuple):
    """A model beside the one that is trained."""

    path: str
    """A folder or hub name."""
    revision: str | None
    key: str
    """The setting that names it."""


@runtime_checkable
class Rewords(Protocol):
    """A task of which some texts may be changed in training while its targets stay: see `regularization`.

    Its `encode` returns one example for a row, whose inputs are `input_ids`, `token_type_ids` and `lengths`; a row of
    these columns alone is enough for them.
    """

    reworded: ClassVar[Sequence[str]]
    """The columns: texts, or lists of texts."""


class Augments(Protocol):
    """What changes the texts of a training example: `regularization.text_augmentation.TextAugmentation`."""

    @property
    def code(self) -> str:
        """Hash of what it reads besides the recipe; empty where that is nothing."""

    def __call__(
        self, task: "Task", example: "Example", rng: "np.random.Generator", reading: "Processing"
    ) -> "Example":
        """Return the example with other texts, drawn from `rng`."""
        ...


@runtime_checkable
class Annotates(Protocol):
    """A task whose loss reads what a frozen model, the reference, says of each example: computed once, before step 1.

    The reference is the model as it stands before step 1, unless `reference_model` names another.
    """

    @property
    def annotations(self) -> Mapping[str, Any]:
        """Name -> a value of the shape that `annotate` returns, for a pass whose loss is of no interest.

        Empty: nothing is annotated under these settings.
        """

    @property
    def annotator_version(self) -> int | str:
        """Another where `annotate` would return something else, so that what was kept of it is not used."""

    @property
    def reference_model(self) -> OtherModel | None:
        """Another model to ask."""

    def check_other_model(self, reading: "Processing", survey: "Survey", rows: "Sequence[Row]" = ()) -> None:
        """Look at the other model's files, before any weights are loaded; `rows` are some of the run's.

        Raises:
            ConfigError: It is not there, reads other tokens or predicts other labels.
        """

    def annotate(self, outputs: Any, batch: "Batch") -> Mapping[str, Sequence[Any]]:
        """Return, under each of the names, a value for each example of a batch; `collate` finds it there.

        A value is plain, or bytes where it holds many numbers.

        Args:
            outputs: What `forward` returned of the reference.
            batch: Collated without annotations.
        """
        ...


@runtime_checkable
class Recognises(Protocol):
    """A task that knows rows of other forms than its own by their columns."""

    shapes: ClassVar[Mapping[str, Mapping[str, str]]]
    """Name -> task column, optional ones with `?`, -> file column. The first that a row fits is taken, where the recipe
    has no `data.columns` and the row has no column of the task's own form but those that the two share."""


@runtime_checkable
class Classifies(Protocol):
    """A task that predicts classes, so that training may put another criterion in the place of cross-entropy."""

    @property
    def classes(self) -> Literal["label", "labels", "token"] | None:
        """What it predicts of an item: one of several labels, any number of labels, or a token of a vocabulary; None:
        no classes under these settings.
        """

    def classified(self, outputs: Any, batch: "Batch") -> "tuple[Tensor, Tensor]":
        """Return what `loss_sum` compares, item by item in the order of the examples.

        Args:
            outputs: What `forward` returned: logits, not a loss.
            batch: What it read.

        Returns:
            Logits, float [items, classes], and targets: int64 [items]; or shares of all classes, float32
            [items, classes].
        """
        ...


@runtime_checkable
class Mixes(Protocol):
    """A task whose examples can be mixed, input and target, once they are transformed."""

    def mix(self, example: "Example", partner: "Example", mixing: "Mixing", rng: "np.random.Generator") -> "Example":
        """Return an example mixed with another, as `collate` takes it; `num_items` stays.

        Args:
            example: What `transform` returned.
            partner: Likewise.
            mixing: How.
            rng: Keyed by the seed, the step and the example.
        """
        ...


@runtime_checkable
class Mismatches(Protocol):
    """A task that also reads part of each example with part of another one: always of the same other one."""

    def mismatch(self, example: "Example", other: "Example") -> "Example":
        """Return an example with what it is read with, as `collate` takes it; `num_items` stays."""
        ...


@runtime_checkable
class Pools(Protocol):
    """A task whose loss compares each example with others: in training with all of the global batch.

    `forward` returns one tensor, float [examples, ...]: what represents each example of a micro-batch, whichever others
    are there. The micro-batch is seldom the global batch, and how that is cut must not change the loss. So `losses`,
    `loss_sum` and `predict` are given a pool: the outputs of all examples of the step, in plan order, and in scoring
    those of the whole split. Where an example has fewer rows than another, zeros follow.
    """

    pooled: ClassVar[Sequence[str]]
    """The tensors of a batch that are pooled beside the outputs."""

    def forward(self, model: Any, batch: "Batch") -> "Tensor":
        """Return what represents each example of a micro-batch."""
        ...

    def losses(self, outputs: "Tensor", batch: "Batch") -> "Tensor":
        """Return each example's loss, float32 [examples], or [examples, terms]; `loss_sum` is their sum.

        Args:
            outputs: Of the pool: float32 [examples, ...].
            batch: Its tensors that `pooled` names.
        """
        ...


@runtime_checkable
class Borrows(Protocol):
    """A task that trains models of another task."""

    def saved_as(self) -> tuple[str, dict[str, Any]]:
        """Return that task's name and its settings, resolved: what a trained model is asked as."""
        ...
