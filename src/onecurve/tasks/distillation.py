"""Distillation: a model learns another task as its labels and a larger model, the teacher, say."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, ValidationError, create_model, model_validator

from onecurve import user_code
from onecurve.config import TaskSection, closest, explain
from onecurve.errors import ConfigError
from onecurve.tasks import base, find_task, task_names
from onecurve.tasks._other_model import check_folder, check_labels, check_tokens
from onecurve.tasks.base import (
    Batch,
    Example,
    OtherModel,
    Processing,
    Row,
    Settings,
    Survey,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

_IDS, _LOGPS = "teacher_ids", "teacher_logps"
_ITEMS, _SIZE = "teacher_items", "teacher_size"
"""Of each example: its items, and how many classes there are."""
_TOKENS_KEPT = 50


class _TeacherSettings(Settings):
    student_task: str
    """What is learnt: text_classification, token_classification, sft, causal_lm or seq2seq_lm. Its settings stand
    beside this one."""
    teacher: str
    """The model to learn from: a folder or hub name. It has the student's vocabulary and labels."""
    teacher_revision: str | None = None
    """Of a teacher from the hub: branch, tag or commit."""
    top_k: int | None = Field(default=None, gt=0)
    """How many of the classes or tokens that the teacher finds likeliest are kept for each item, all others together
    as one more. Default: all labels, or 50 tokens."""
    temperature: float = Field(default=1.0, gt=0)
    """Divides the logits of both before they are compared: above 1 shows more of what the teacher finds unlikely."""
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    """forward_kl: KL(teacher || student); reverse_kl: KL(student || teacher); jsd: between the two, by beta (GKD)."""
    beta: float = Field(default=0.5, gt=0, lt=1)
    """Of jsd: towards 0 it is like forward_kl, towards 1 like reverse_kl."""
    weight: float = Field(default=0.5, gt=0, le=1)
    """Share of the divergence in the loss; the rest is the cross-entropy with the labels."""

    @model_validator(mode="after")
    def _agree(self) -> "_TeacherSettings":
        if self.divergence != "jsd" and self.beta != 0.5:
            raise ValueError(f"beta has no effect with divergence {self.divergence}: remove it")
        return self


class DistillationSettings(_TeacherSettings):
    model_config = ConfigDict(extra="allow")


class Task(base.Task):
    """Learn a task from its labels and from a teacher: a trained model whose probabilities the student comes close to.

    What the teacher says of each item, a label or a token, is computed once, before step 1, and kept with the data. The
    student's task is any that predicts labels or tokens of a text; the saved model is one of that task.
    """

    _is_whole: ClassVar[bool] = False
    """Whether the class is that of the student's task too."""
    is_guessed: ClassVar[bool] = False
    has_models_loss: ClassVar[bool] = False
    Settings: ClassVar[type[Settings]] = DistillationSettings
    columns: ClassVar[Mapping[str, str]] = {"the student's": "what `task.student_task` reads"}

    def __new__(cls, settings: Any = None) -> "Task":
        # Of the class of the student's task too, so that it can do all that this can
        return super().__new__(cls if cls._is_whole else _kind(cls, settings.student_task))

    def __init__(self, settings: DistillationSettings) -> None:
        try:
            super().__init__(self.Settings(**settings.model_dump()))
        except ValidationError as error:
            known = create_model("Known", __base__=(self.Settings, TaskSection))
            raise explain(error, known, prefix="task.") from None
        predicted = super().classes  # type: ignore[misc]
        if predicted not in ("label", "token"):
            raise ConfigError(
                "a teacher is learnt from where one of several labels is predicted.",
                where="task.problem_type",
                fix="Set it to single_label_classification.",
            )
        self._of_tokens = predicted == "token"
        self.terms = {"cross_entropy": 1 - self.settings.weight, "distillation": self.settings.weight}
        of_terms = [*map(self.metric_of_term, self.terms)]
        self.metric_names = [*self.metric_names, *of_terms]
        self.lower_is_better = frozenset({*self.lower_is_better, *of_terms})  # type: ignore[misc]

    def saved_as(self) -> tuple[str, dict[str, Any]]:
        own = {*_TeacherSettings.model_fields}
        return self.settings.student_task, self.settings.model_dump(mode="json", exclude=own)

    def without_effect(self, reading: Processing | None = None) -> Mapping[str, str]:
        whole = {"train.logits": "each token's whole distribution is compared, of which chunks keep none"}
        return {**super().without_effect(reading), **(whole if self._of_tokens else {})}

    def encode(self, row: Row, survey: Survey, reading: Processing, truncate: bool) -> list[Example]:
        found = super().encode(row, survey, reading, truncate)  # type: ignore[safe-super]
        return [{**example, "num_items": [example["num_items"]] * 2} for example in found]

    def collate(self, examples: Sequence[Example], reading: Processing) -> Batch:
        import torch

        batch = super().collate(examples, reading)  # type: ignore[safe-super]
        counts = [example["num_items"][0] for example in examples]
        batch[_ITEMS] = torch.tensor(counts)
        if self._of_tokens:
            batch[_SIZE] = torch.full((len(examples),), len(reading.tokenizer))
        if _LOGPS not in examples[0]:
            return batch
        if any(example[_IDS] for example in examples):
            batch[_IDS] = _padded([example[_IDS] for example in examples], counts, torch.int32).long()
        batch[_LOGPS] = _padded([example[_LOGPS] for example in examples], counts, torch.float32)
        return batch

    def num_items(self, batch: Batch) -> list[int]:
        return [super().num_items(batch)] * 2  # type: ignore[safe-super]

    def describe(self, example: Example, survey: Survey, tokenizer: Any) -> str:
        return super().describe(example, survey, tokenizer)  # type: ignore[safe-super]

    def auto_model(self) -> type:
        return super().auto_model()  # type: ignore[safe-super]

    @property
    def classes(self) -> None:
        """None: another criterion would leave the teacher out."""
        return None

    def forward(self, model: "nn.Module", batch: Batch) -> Any:
        return super().forward(model, _student(batch))

    def loss_sum(self, outputs: Any, batch: Batch) -> "Tensor":
        """Return the cross-entropy and the divergence, each summed over items: float32 [2]."""
        import torch

        from onecurve.losses.distillation import divergence_sum

        settings, places = self.settings, _places(batch)
        teacher, *ids = (batch[name].flatten(0, 1).index_select(0, places) for name in (_LOGPS, _IDS) if name in batch)
        apart = divergence_sum(
            self._logits(outputs, batch),
            ids[0] if ids else None,
            teacher,
            settings.temperature,
            settings.divergence,
            settings.beta,
        )
        labels = super().loss_sum(outputs, _student(batch))  # type: ignore[safe-super]
        return torch.stack([labels.reshape(()).float(), apart])

    def _logits(self, outputs: Any, batch: Batch) -> "Tensor":
        """Return the logits of each item, float [items, classes]; rows that pad an output layer are no classes."""
        from onecurve.machine.accelerator import on_host

        logits, _ = self.classified(outputs, _student(batch))  # type: ignore[attr-defined]
        found: Tensor = logits[:, : int(on_host(batch[_SIZE]).numpy()[0])] if _SIZE in batch else logits
        return found

    # What the teacher says

    @property
    def annotations(self) -> Mapping[str, Any]:
        return {_IDS: b"", _LOGPS: b""}

    @property
    def annotator_version(self) -> str:
        return f"1, {self.settings.top_k}, {self.settings.temperature}"

    @property
    def reference_model(self) -> OtherModel:
        return OtherModel(self.settings.teacher, self.settings.teacher_revision, "task.teacher")

    def check_other_model(self, reading: Processing, survey: Survey, rows: Sequence[Row] = ()) -> None:
        check_folder(self.reference_model)
        check_tokens(self.reference_model, reading.tokenizer, rows)
        if not self._of_tokens:
            check_labels(self.reference_model, survey.labels)
        size, top_k = len(reading.tokenizer) if self._of_tokens else len(survey.labels), self.settings.top_k
        if top_k and top_k > size:
            raise ConfigError(f"is {top_k}, and there are {size}.", where="task.top_k", fix="Lower or remove it.")

    def annotate(self, outputs: Any, batch: Batch) -> Mapping[str, Sequence[bytes]]:
        """Return the teacher's likeliest classes and their log-probabilities: each item's in turn, int32 and float32.

        Of all classes only the log-probabilities are kept.
        """
        from onecurve.losses.distillation import likeliest
        from onecurve.machine.accelerator import on_host

        logits = self._logits(outputs, batch)
        top_k = self.settings.top_k or (_TOKENS_KEPT if self._of_tokens else logits.shape[1])
        ids, logps = likeliest(logits, top_k, self.settings.temperature)
        counts = on_host(batch[_ITEMS]).tolist()
        said = {_LOGPS: [part.numpy().tobytes() for part in logps.cpu().split(counts)]}
        if ids is None:
            return said | {_IDS: [b""] * len(counts)}
        return said | {_IDS: [part.numpy().tobytes() for part in ids.int().cpu().split(counts)]}

    # Scores

    def predict(self, outputs: Any, batch: Batch) -> list[tuple[Any, Any]]:
        """Return the student's task's; of tokens, (their cross-entropy, how many they are) of each example."""
        if not self._of_tokens:
            return super().predict(outputs, batch)
        from torch.nn import functional

        from onecurve.machine.accelerator import on_host

        logits, targets = self.classified(outputs, _student(batch))  # type: ignore[attr-defined]
        each, counts = functional.cross_entropy(logits.float(), targets, reduction="none"), on_host(batch[_ITEMS])
        sums = [float(part.double().sum()) for part in each.cpu().split(counts.tolist())]
        return list(zip(sums, counts.tolist(), strict=True))

    def metrics(self, pairs: Sequence[tuple[Any, Any]], loss: float, survey: Survey) -> dict[str, Any]:
        if not self._of_tokens:
            return super().metrics(pairs, loss, survey)
        sums, counts = zip(*pairs, strict=True)
        return {**super().metrics([], sum(sums) / sum(counts), survey), "loss": loss}


@cache
def _kind(own: type[Task], student: str) -> type[Task]:
    """Return the class of a distillation of one task.

    Args:
        own: What learns from the teacher.
        student: The task's name.

    Raises:
        ConfigError: No such task, or one that cannot learn from a teacher.
    """
    if user_code.is_external(student) or student not in task_names():
        raise ConfigError(
            f"{student!r} is none of onecurve's tasks.", where="task.student_task", fix=closest(student, task_names())
        )
    kind = find_task(student, "task.student_task")
    reasons = {
        "it predicts neither labels nor tokens": not hasattr(kind, "classified") or hasattr(kind, "annotate"),
        "its examples are made anew each time that they are read, and the teacher reads each once": hasattr(
            kind, "transform"
        ),
        "its examples are compared with each other": hasattr(kind, "pooled"),
    }
    if why := next((why for why, holds in reasons.items() if holds), ""):
        raise ConfigError(f"{student} cannot learn from a teacher: {why}.", where="task.student_task")
    of_loss = {*_TeacherSettings.model_fields} - {"student_task"}
    taken: dict[str, Any] = {
        "__module__": own.__module__,
        "__doc__": kind.__doc__,
        "_is_whole": True,
        "Settings": create_model("Settings", __base__=(_TeacherSettings, kind.Settings)),
        "columns": kind.columns,
        "loss_settings": kind.loss_settings | of_loss,
    }
    return type(own.__name__, (own, kind), taken)


def _student(batch: Batch) -> Batch:
    return {name: tensor for name, tensor in batch.items() if not name.startswith("teacher_")}


def _places(batch: Batch) -> "Tensor":
    """Return where the items stand among the padded ones: int64 [items]."""
    import numpy as np
    import torch

    from onecurve.machine.accelerator import on_host, to_device

    counts, width = on_host(batch[_ITEMS]).numpy(), batch[_LOGPS].shape[1]
    there = np.arange(width)[None] < counts[:, None]
    return to_device(torch.from_numpy(np.flatnonzero(there)), batch[_LOGPS].device)


def _padded(values: Sequence[bytes], counts: Sequence[int], dtype: Any) -> "Tensor":
    """Return what was said of each item of each example, zero where an example has fewer: [examples, most, width].

    Of examples of which nothing was said yet: zeros of width 1.
    """
    import torch

    width = sum(map(len, values)) // (4 * sum(counts)) or 1
    filled = torch.zeros((len(values), max(counts), width), dtype=dtype)
    for own, value, count in zip(filled, values, counts, strict=True):
        if value:
            own[:count] = torch.frombuffer(bytearray(value), dtype=dtype).view(count, width)
    return filled
