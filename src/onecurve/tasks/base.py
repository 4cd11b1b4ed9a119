"""The interface of a task: its columns, how a row is encoded, its loss, metrics and predictions."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from reprlib import repr as short
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from onecurve.config.sections.base import Section
from onecurve.content.survey import Survey as Survey
from onecurve.errors import BadRow as BadRow
from onecurve.tasks._capabilities import Annotates as Annotates
from onecurve.tasks._capabilities import Asked as Asked
from onecurve.tasks._capabilities import Augments as Augments
from onecurve.tasks._capabilities import Borrows as Borrows
from onecurve.tasks._capabilities import Classifies as Classifies
from onecurve.tasks._capabilities import Generates as Generates
from onecurve.tasks._capabilities import Mismatches as Mismatches
from onecurve.tasks._capabilities import Mixes as Mixes
from onecurve.tasks._capabilities import OtherModel as OtherModel
from onecurve.tasks._capabilities import Pools as Pools
from onecurve.tasks._capabilities import Recognises as Recognises
from onecurve.tasks._capabilities import Rewords as Rewords
from onecurve.tasks._capabilities import Transforms as Transforms
from onecurve.tasks._capabilities import Votes as Votes
from onecurve.tasks._capabilities import Writes as Writes
from onecurve.tasks._packaged import Follows as Follows
from onecurve.tasks._packaged import Packaged as Packaged
from onecurve.tasks._rolls_out import RollsOut as RollsOut

if TYPE_CHECKING:  # the heavy imports wait until a recipe is known to be good
    from torch import Tensor, nn

IGNORE_INDEX = -100
"""Label that the loss ignores; the default of PyTorch and transformers."""

Row = dict[str, Any]
"""One row of the data by the task's own column names."""
Example = dict[str, Any]
"""One encoded example: plain values, whatever `collate` reads, and `num_items`, the terms of its loss: a number, or a
list with one for each of the task's `terms`. What stands under `TALLY` is counted for the summary and not kept."""
TALLY = "tally"
"""Key of an example: phrase -> how often what it says is true of the example."""
Batch = dict[str, "Tensor"]
"""One micro-batch; every tensor's first dimension is the example."""
Answer = dict[str, Any]
"""A trained model's prediction for one row, as plain values for JSON."""
NO_CONVERSATIONS: Mapping[str, str] = {"model.chat_template": "this task renders no conversations"}
NO_TEXT_OUT = {**NO_CONVERSATIONS, "train.logits": "this task's models have no language model head"}
"""What tasks return of `without_effect` that have no use for a chat template, nor for a language model's head."""


class Limit(NamedTuple):
    """The greatest length of an example."""

    length: int
    unit: str = "tokens"
    """What is counted, for messages."""
    key: str = "data.max_length"
    """The setting that raises it; empty: none does."""


class Settings(Section):
    """A task's own settings: the keys beside `task.name`."""


class Processing(Protocol):
    """What turns rows into model inputs; `model.reading.Reading` is the run's."""

    @property
    def processor(self) -> Any:
        """The tokenizer, image processor or feature extractor that the task asks for, loaded."""

    @property
    def tokenizer(self) -> Any:
        """The processor, or the part of it that reads text."""

    @property
    def config(self) -> Any:
        """The model's transformers config."""

    @property
    def labels(self) -> list[str]:
        """The labels that a pretrained model's config names, in the order of its head's rows."""
        ...

    @property
    def max_length(self) -> int:
        """The length that an example may have."""
        ...

    @property
    def positions(self) -> int | None:
        """How many tokens the model has positions for, an adapter's virtual ones left aside; None without a limit."""
        ...


class Task(ABC):
    """What a task is: one file in this folder, with a subclass of this class that is named `Task`.

    What is not abstract has a default that suits a task over text.
    """

    Settings: ClassVar[type[Settings]] = Settings
    columns: ClassVar[Mapping[str, str]]
    """Column -> what it must hold. A name ending in `?` is optional: the file need not have it."""
    media: ClassVar[Mapping[str, str]] = {}
    """Columns whose values are files, and of what kind: image or audio. A row holds them as `content.media.Media`."""
    sample: ClassVar[Sequence[Row]] = ()
    """A few rows, of which `onecurve init` makes data to begin from where the task's recipe has none as JSON lines.
    A column in `media` holds the files' bytes."""
    targets: ClassVar[frozenset[str]] = frozenset({"label"})
    """The target columns, which are not an input of a trained model."""
    encoder_version: ClassVar[int] = 1
    """Increase it when `encode` returns something else, so that old caches are not used."""
    peft_task_type: ClassVar[str | None] = None
    """PEFT's name for this kind of model, such as SEQ_CLS or CAUSAL_LM."""
    metric_names: Sequence[str] = ("loss",)
    """The numbers among what `metrics` returns under these settings: what `eval.best_metric` may name."""
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"loss"})
    """The metrics that are better when lower; `loss` always is."""
    terms: Mapping[str, float] = {"loss": 1.0}
    """The terms of the loss by name, each with its weight: the loss is the weighted sum of their means, each mean over
    the global batch's items of that term."""
    needs_whole_model: ClassVar[Mapping[str, str]] = {}
    """Keys of the recipe that have no effect under an adapter, and why."""
    packages: frozenset[str] = frozenset()
    """Packages, beyond what onecurve itself needs, that the task imports under these settings."""
    is_guessed: ClassVar[bool] = True
    """Whether a model folder that does not say its task is taken for this one's, where the kind of model fits."""
    has_models_loss: ClassVar[bool] = False
    """Whether a batch, given whole to a model of transformers, has it return this task's loss."""
    scoring_settings: ClassVar[frozenset[str]] = frozenset()
    """The settings that change neither examples nor training, only how the model is scored."""
    loss_settings: ClassVar[frozenset[str]] = frozenset()
    """The settings that change the loss, and not the examples."""
    augmentation: "Augments | None" = None  # changes training texts; the recipe's, where the task `Rewords`

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def without_effect(self, reading: "Processing | None" = None) -> Mapping[str, str]:
        """Return keys of the recipe that this task does not read, and why; asked again once `reading` is loaded."""
        return {}

    # Rows

    def read_text(self, text: str) -> Row:
        """Return the row for a single text, as given to `onecurve predict`."""
        return {next(iter(self.columns)).removesuffix("?"): text}

    def check_input(self, row: Row) -> None:  # noqa: B027  columns that are there need no more
        """Raise `BadRow` when what a trained model reads, labels left aside, is empty or invalid."""

    def check(self, row: Row) -> None:  # noqa: B027  columns that are there need no more
        """Raise `BadRow` when a value has the wrong type, is empty or is invalid. Needs no tokenizer."""

    def survey(self, rows: Iterable[Row]) -> Survey:
        """Read what the training split must tell (label names) from its rows, which passed `check`."""
        return Survey()

    def row_labels(self, row: Row) -> Sequence[str]:
        """Return the labels that a row, which passed `check`, has: they are counted in the summary."""
        return ()

    def check_label(self, row: Row, survey: Survey) -> None:  # noqa: B027  a task without labels knows them all
        """Raise `BadRow` when a dev or test row has a label that training never saw."""

    # Examples

    def auto_processor(self) -> type:
        """Return the transformers class that loads what reads the rows, such as `AutoTokenizer`."""
        from transformers import AutoTokenizer

        return AutoTokenizer

    @abstractmethod
    def encode(self, row: Row, survey: Survey, reading: Processing, truncate: bool) -> list[Example]:
        """Turn one row into examples: one, several (a long document), or none with nothing to learn.

        With `truncate` none is longer than `reading.max_length`; without, it may be, and the caller decides. A row that
        a trained model is asked about has no label, and then neither has its example.
        """

    def length(self, example: Example) -> int:
        """Return the length of an example's longest sequence, which `data.max_length` limits."""
        return len(example["input_ids"])

    def limit(self, reading: Processing) -> "Limit":
        """Return the length that an example may have; by default what `data.max_length` and the model say."""
        return Limit(reading.max_length)

    def num_tokens(self, example: Example) -> int:
        """Return how many tokens a model computes for an example."""
        return self.length(example)

    @abstractmethod
    def collate(self, examples: Sequence[Example], reading: Processing) -> Batch:
        """Pad examples to one batch.

        May run in a thread beside the model, and so draws nothing at random.
        """

    @abstractmethod
    def num_items(self, batch: Batch) -> Any:
        """Count the terms of the loss: exactly what `loss_sum` adds up, and the sum of the examples' `num_items`."""

    @abstractmethod
    def describe(self, example: Example, survey: Survey, tokenizer: Any) -> str:
        """Show one example as the model sees it: what is read and what is learnt from."""

    # The model

    @abstractmethod
    def auto_model(self) -> type:
        """Return the transformers `AutoModelFor...` class."""

    def model_config(self, survey: Survey) -> dict[str, Any]:
        """Return the values to set in the model's config (label names, problem type)."""
        return {}

    def settle(self, model: Any, pretrained: bool) -> str:
        """Change a model that was just loaded, before any adapter: freeze parts, switch off what it draws itself.

        Args:
            model: A transformers model. Under ZeRO-3 its parameters are partitioned.
            pretrained: Whether its weights were; else they were drawn at random.

        Returns:
            What the user should know of it; empty where that is nothing.
        """
        return ""

    def forward(self, model: "nn.Module", batch: Batch) -> Any:
        """Return the logits, a tensor or several by name, whose first dimension is the example or the target.

        Or what `loss_sum` makes of them, a scalar, where `train.logits` is chunked.
        """
        return model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits

    @abstractmethod
    def loss_sum(self, outputs: Any, batch: Batch) -> "Tensor":
        """Loss *summed* over the batch's items, float32 [terms], or [] where there is one term, in nats.

        (Regression: squared units.) Every term is computed in every pass, zero where the batch has no item of it: a
        head that one rank does not run would keep the others waiting.
        """

    # Scores

    def metric_of_term(self, term: str) -> str:
        """Return the metric's name for the mean of a term of the loss, where there are several."""
        return f"loss/{term}"

    def predict(self, outputs: Any, batch: Batch) -> list[tuple[Any, Any]]:
        """Return (prediction, reference) per example as plain values; empty where only the loss is scored."""
        return []

    def metrics(self, pairs: Sequence[tuple[Any, Any]], loss: float, survey: Survey) -> dict[str, Any]:
        """Score a whole split: names to numbers, and what has parts (per class, confusion) to nested values."""
        return {"loss": loss}

    # Predictions

    def reference(self, example: Example, survey: Survey) -> Answer:
        """Return what a labelled example should be answered, as `reference`; nothing where only its loss is told."""
        return {}

    def answers(self, outputs: Any, batch: Batch, examples: Sequence[Example], survey: Survey) -> list[Answer]:
        """Return what a trained model says of each example: `label`, `probability`, `value`, `entities`, ...

        A task that `Generates` or is `Asked` need not; one that does none of these cannot be asked.
        """
        raise NotImplementedError


def check_text(value: Any, column: str) -> None:
    """Raise `BadRow` unless a value is text that is not blank."""
    if value is None:
        raise BadRow(f"{column} is missing")
    if not isinstance(value, str):
        raise BadRow(f"{column} must be text; got {short(value)} ({type(value).__name__})")
    if not value.strip():
        raise BadRow(f"{column} is empty")


def reads_last_position(config: Any) -> bool:
    """Whether a classifier reads the last position of a batch, padding or not, as XLNet does: then pad on the left."""
    return getattr(config, "summary_type", None) == "last"
