"""Several tasks learnt at once: a head for each on one backbone, with rows that need not have labels for all."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from onecurve.errors import ConfigError
from onecurve.tasks import base, resolve_task
from onecurve.tasks._head_settings import HeadSettings, inputs_of, load_head, shared_inputs, unfit_model
from onecurve.tasks._heads import INPUTS, Head
from onecurve.tasks.base import TALLY, Answer, BadRow, Batch, Example, Processing, Row, Settings, Survey

if TYPE_CHECKING:
    from torch import Tensor, nn

_RESERVED = frozenset(
    {"base", "error", "id", "kept", "loss", "num_items", "place", "reference", "row", "text", "truncated"}
)
"""Names that stand beside a head's in answers, in scores and in the model folder."""


class MultiTaskSettings(Settings):
    heads: dict[str, HeadSettings] = Field(min_length=2)
    """Name -> task and settings. All read the same input; a row may have labels for some of them only."""

    @field_validator("heads")
    @classmethod
    def _names_can_be_told_apart(cls, heads: dict[str, HeadSettings]) -> dict[str, HeadSettings]:
        for name in heads:
            if not name.replace("-", "_").isidentifier() or name in _RESERVED:
                raise ValueError(
                    f"a head's name is letters, digits, - and _, and none of {', '.join(sorted(_RESERVED))}; "
                    f"got {name!r}"
                )
        return heads


class Task(base.Task):
    """Learn several tasks at once: a head for each on one backbone.

    Each head is a task of its own, with its labels, its metrics (`HEAD/METRIC`) and a term of the loss: a mean over the
    labelled items of the global batch, times its weight. A row may lack the labels of some heads, not of all. The heads
    read the same input, and the backbone runs once.
    """

    Settings: ClassVar[type[Settings]] = MultiTaskSettings
    columns: Mapping[str, str] = {  # type: ignore[misc]
        "the heads' inputs": "what their tasks read, such as text",
        "HEAD?": "a column for each head: what its task learns; empty where a row has no label for it",
    }

    def __init__(self, settings: MultiTaskSettings) -> None:
        self.heads = {name: load_head(name, head) for name, head in settings.heads.items()}
        resolved = {
            name: HeadSettings(
                **{**resolve_task(self.heads[name].task), **head.model_dump(include={*HeadSettings.model_fields})}
            )
            for name, head in settings.heads.items()
        }
        super().__init__(settings.model_copy(update={"heads": resolved}))
        heads = [*self.heads.values()]
        self.columns = shared_inputs(heads)
        for head in heads:
            for column, what in head.targets.items():
                if any(column.removesuffix("?") == other.removesuffix("?") for other in self.columns):
                    raise ConfigError(
                        f"the column {column.removesuffix('?')!r} is another head's, or one that all heads read.",
                        where=f"{head.key}.columns",
                        fix="Name another column for this head's labels.",
                    )
                self.columns[column] = what
        self.targets = frozenset(column.removesuffix("?") for head in heads for column in head.targets)  # type: ignore[misc]
        # Grows whenever one of them does
        self.encoder_version = 1 + sum(head.task.encoder_version for head in heads)  # type: ignore[misc]
        self.terms = {head.name: head.weight for head in heads}
        self.packages = frozenset().union(*(head.task.packages for head in heads))
        of_heads = [f"{head.name}/{name}" for head in heads for name in head.task.metric_names if name != "loss"]
        self.metric_names = ("loss", *(self.metric_of_term(name) for name in self.heads), *of_heads)
        lower = {f"{head.name}/{name}" for head in heads for name in head.task.lower_is_better}
        self.lower_is_better = frozenset({"loss", *lower, *map(self.metric_of_term, self.heads)})  # type: ignore[misc]

    def metric_of_term(self, term: str) -> str:
        return f"{term}/loss"

    def without_effect(self, reading: Processing | None = None) -> Mapping[str, str]:
        told = [head.task.without_effect(reading) for head in self.heads.values()]
        shared = {key: why for key, why in told[0].items() if all(key in other for other in told[1:])}
        return {key: why for key, why in shared.items() if not key.startswith("task.")}  # looked at head by head

    # Rows

    def read_text(self, text: str) -> Row:
        head = next(head for head in self.heads.values() if all(head.columns[c] == c for c in inputs_of(head)))
        return head.task.read_text(text)

    def check_input(self, row: Row) -> None:
        for head in self.heads.values():
            with head.told():
                head.task.check_input(head.row(row))

    def check(self, row: Row) -> None:
        self.check_input(row)
        for head in self._labelled(row):
            with head.told():
                head.task.check(head.row(row))
        if not any(self._labelled(row)):
            raise BadRow(f"has a label for no head: {', '.join(sorted(self.targets))} are missing or empty")

    def _labelled(self, row: Row) -> list[Head]:
        return [head for head in self.heads.values() if head.is_labelled(row)]

    def survey(self, rows: Iterable[Row]) -> Survey:
        labels: dict[str, list[Row]] = {name: [] for name in self.heads}
        for row in rows:  # once, and of each row only the labels are kept
            for head in self.heads.values():
                labels[head.name] += head.labelled_rows([row])
        found = {}
        for head in self.heads.values():
            with head.told():
                found[head.name] = head.task.survey(labels[head.name])
        return Survey(heads=found)

    def row_labels(self, row: Row) -> Sequence[str]:
        return [f"{head.name}/{label}" for head in self._labelled(row) for label in head.task.row_labels(head.row(row))]

    def check_label(self, row: Row, survey: Survey) -> None:
        for head in self._labelled(row):
            with head.told():
                head.task.check_label(head.row(row), survey.heads[head.name])

    # Examples

    def encode(self, row: Row, survey: Survey, reading: Processing, truncate: bool) -> list[Example]:
        own = {n: head.encode(row, survey.heads[n], reading, truncate) for n, head in self.heads.items()}
        shared = _agreed({name: {key: one.get(key) for key in INPUTS} for name, one in own.items()})
        counts = [one["num_items"] for one in own.values()]
        if not any(counts) and self._labelled(row):
            return []
        of_heads = {f"{n}/{key}": value for n, one in own.items() for key, value in one.items() if key not in INPUTS}
        tally = {f"labelled for {name}": 1 for name, one in own.items() if one["num_items"]}
        given = {key: value for key, value in shared.items() if value is not None}
        return [{**given, **of_heads, "num_items": counts, TALLY: tally}]

    def collate(self, examples: Sequence[Example], reading: Processing) -> Batch:
        import torch

        own = {name: head.collate(examples, reading) for name, head in self.heads.items()}
        batches = [{key: batch[key] for key in INPUTS if key in batch} for batch in own.values()]
        shared = {key: tensor for batch in batches for key, tensor in batch.items()}
        for name, batch in zip(own, batches, strict=True):
            if not all(torch.equal(tensor, shared[key]) for key, tensor in batch.items()):
                raise ConfigError("pads its inputs otherwise than the other heads.", where=f"task.heads.{name}.name")
        of_heads = {
            f"{n}/{key}": tensor for n, batch in own.items() for key, tensor in batch.items() if key not in INPUTS
        }
        return shared | of_heads

    def num_items(self, batch: Batch) -> list[int]:
        return [head.num_items(batch) for head in self.heads.values()]

    def describe(self, example: Example, survey: Survey, tokenizer: Any) -> str:
        labelled = [head for head in self.heads.values() if head.own(example)["num_items"]]
        told = (head.task.describe(head.own(example), survey.heads[head.name], tokenizer) for head in labelled)
        return "\n".join(f"{head.name}: {text}" for head, text in zip(labelled, told, strict=True))

    # The model

    def auto_model(self) -> Any:
        from onecurve.tasks._heads_model import ManyHeadsModel

        for head in self.heads.values():
            if why := unfit_model(head.task):
                raise ConfigError(f"cannot be one of several heads: {why}.", where=f"{head.key}.name")
        return ManyHeadsModel({name: head.task.auto_model().__name__ for name, head in self.heads.items()})

    def model_config(self, survey: Survey) -> dict[str, Any]:
        return {
            "task_heads": {
                name: {
                    "kind": head.task.auto_model().__name__,
                    "peft_task_type": head.task.peft_task_type,
                    "config": head.task.model_config(survey.heads[name]),
                }
                for name, head in self.heads.items()
            }
        }

    def settle(self, model: Any, pretrained: bool) -> str:
        from onecurve.losses.float32_output import return_float32

        for name in self.heads:
            return_float32(model.head(name))
        return ""

    def forward(self, model: "nn.Module", batch: Batch) -> "dict[str, Tensor]":
        """Return the outputs of each head, by its name, as its task has them."""
        logits = model(**{key: batch[key] for key in INPUTS if key in batch})
        return {name: head.forward(logits[name], batch) for name, head in self.heads.items()}

    def loss_sum(self, outputs: Any, batch: Batch) -> "Tensor":
        import torch

        return torch.stack([head.loss_sum(outputs[name], batch) for name, head in self.heads.items()])

    # Scores

    def predict(self, outputs: Any, batch: Batch) -> list[tuple[Any, Any]]:
        pairs: list[tuple[Any, Any]] = [({}, {}) for _ in batch["input_ids"]]
        for name, head in self.heads.items():
            own, labelled, places = head.labelled(outputs[name], batch)
            numbers = places.tolist()
            found = head.task.predict(own, labelled) if numbers else []
            for number, (prediction, reference) in zip(numbers, found, strict=bool(found)):
                pairs[number][0][name], pairs[number][1][name] = prediction, reference
        return pairs

    def metrics(self, pairs: Sequence[tuple[Any, Any]], loss: float, survey: Survey) -> dict[str, Any]:
        scores: dict[str, Any] = {"loss": loss}
        for name, head in self.heads.items():
            own = [(left[name], right[name]) for left, right in pairs if name in right]
            # Where no row has a label for it, there is nothing to score
            told = head.task.metrics(own, loss, survey.heads[name]) if own else dict.fromkeys(head.task.metric_names)
            scores |= {f"{name}/{metric}": value for metric, value in told.items() if metric != "loss"}
        return scores

    # Predictions

    def reference(self, example: Example, survey: Survey) -> Answer:
        told = {}
        for name, head in self.heads.items():
            if (own := head.own(example))["num_items"]:
                told[name] = head.task.reference(own, survey.heads[name]).get("reference")
        return {"reference": told}

    def answers(self, outputs: Any, batch: Batch, examples: Sequence[Example], survey: Survey) -> list[Answer]:
        """Return what each head says of each example: `{"topic": {"label": ...}, "sentiment": {...}}`."""
        told: list[Answer] = [{} for _ in examples]
        for name, head in self.heads.items():
            own = [head.own(example) for example in examples]
            said = head.task.answers(outputs[name], head.batch(batch), own, survey.heads[name])
            for answer, of_head in zip(told, said, strict=True):
                answer[name] = of_head
        return told


def _agreed(inputs: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the input that all heads made of a row.

    Raises:
        BadRow: They made different ones.
    """
    (first, shared), *others = inputs.items()
    for name, own in others:
        if own != shared:
            raise BadRow(f"the heads {first} and {name} read other tokens in it; they must read the same text alike")
    return shared
