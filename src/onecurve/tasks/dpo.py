"""Preference optimisation: a language model learns to prefer the chosen answer of a pair to the rejected one."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from onecurve.content.documents import tokenise
from onecurve.content.preferences import read_question
from onecurve.losses import preference
from onecurve.losses.next_token import mark_learnt
from onecurve.tasks._answers import AnswersTask, answer_logps
from onecurve.tasks._padding import pad
from onecurve.tasks._preferences import PreferenceTask, flattened, pad_pairs
from onecurve.tasks._rendering import TemplateSettings
from onecurve.tasks.base import Answer, Batch, Example, Processing, Row, Settings, Survey

if TYPE_CHECKING:
    from torch import Tensor, nn

_REFERENCE = "reference_logps"
_REFERENCE_FREE = ("orpo", "simpo")
_SMOOTHED = ("sigmoid", "sigmoid_norm", "simpo")


class DpoSettings(TemplateSettings):
    loss_type: Literal["sigmoid", "sigmoid_norm", "hinge", "ipo", "orpo", "simpo"] = "sigmoid"
    """The loss, by TRL's names: sigmoid (DPO), sigmoid_norm (DPO of log-probabilities per token), hinge (SLiC) or ipo;
    or, without a reference model, orpo or simpo."""
    beta: float = Field(default=0.1, gt=0)
    """How closely the model is held to the reference: higher is closer. Of ipo the paper's tau; of orpo its lambda."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of pairs taken to be labelled the wrong way round (cDPO); for sigmoid, sigmoid_norm and simpo."""
    simpo_gamma: float = Field(default=0.5, ge=0)
    """Of simpo: the margin that beta times the difference of log-probabilities per token has to exceed."""
    reference: str | None = None
    """Another model as reference: a folder or hub name. Default: the model as it is before step 1."""

    @model_validator(mode="after")
    def _agree(self) -> "DpoSettings":
        if self.label_smoothing and self.loss_type not in _SMOOTHED:
            raise ValueError(f"label_smoothing has no effect with loss_type {self.loss_type}: remove it")
        if self.loss_type != "simpo" and "simpo_gamma" in self.model_fields_set and self.simpo_gamma != 0.5:
            raise ValueError(f"simpo_gamma has no effect with loss_type {self.loss_type}: remove it")
        if self.reference and self.loss_type in _REFERENCE_FREE:
            raise ValueError(f"reference has no effect with loss_type {self.loss_type}, which has none: remove it")
        return self


class Task(PreferenceTask, AnswersTask):
    """Learn from pairs of a chosen and a rejected answer to prefer the chosen one (DPO, IPO, SLiC, ORPO, SimPO).

    What a frozen reference model says of the answers is computed once, before step 1, and kept with the data. Only the
    answers count, their end tokens included.
    """

    is_guessed: ClassVar[bool] = False
    Settings: ClassVar[type[Settings]] = DpoSettings
    targets: ClassVar[frozenset[str]] = frozenset({"chosen", "rejected"})
    metric_names: Sequence[str] = (
        "loss",
        "rewards/chosen",
        "rewards/rejected",
        "rewards/accuracies",
        "rewards/margins",
        "logps/chosen",
        "logps/rejected",
    )
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"loss"})
    loss_settings: ClassVar[frozenset[str]] = frozenset(DpoSettings.model_fields) - set(TemplateSettings.model_fields)
    annotator_version: ClassVar[int] = 2

    def check_input(self, row: Row) -> None:
        if not {"chosen", "rejected"} & row.keys():
            read_question(row)

    def encode(self, row: Row, survey: Survey, reading: Processing, truncate: bool) -> list[Example]:
        example: Example = {}
        for side, document in zip(("chosen", "rejected"), self.documents(row, reading.tokenizer), strict=True):
            ids, mask = tokenise(document, reading.tokenizer)
            if truncate:
                ids, mask = ids[: reading.max_length], mask[: reading.max_length]
            if not any(mask[1:]):
                return []
            example |= {f"{side}_ids": ids, f"{side}_mask": [0, *map(int, mask[1:])]}
        # Where what differs was cut off, there is nothing to prefer
        return [] if example["chosen_ids"] == example["rejected_ids"] else [example | {"num_items": 1}]

    def collate(self, examples: Sequence[Example], reading: Processing) -> Batch:
        import torch

        batch = pad_pairs(examples, reading.tokenizer.pad_token_id)
        masks = pad([example[f"{side}_mask"] for example in examples for side in ("chosen", "rejected")], 0)
        batch["completion_mask"] = masks.view(batch["input_ids"].shape)
        if _REFERENCE in examples[0]:
            batch[_REFERENCE] = torch.tensor([example[_REFERENCE] for example in examples], dtype=torch.float64)
        return batch

    def num_items(self, batch: Batch) -> int:
        return len(batch["input_ids"])

    def describe(self, example: Example, survey: Survey, tokenizer: Any) -> str:
        chosen, rejected = (
            mark_learnt(example[f"{side}_ids"], [bool(one) for one in example[f"{side}_mask"]], tokenizer)
            for side in ("chosen", "rejected")
        )
        return f"{chosen} is better than {rejected}"

    def length(self, example: Example) -> int:
        return len(example["input_ids"]) if "input_ids" in example else super().length(example)

    # The model

    def forward(self, model: "nn.Module", batch: Batch) -> "Tensor":
        """Return the summed log-probability of both answers of each pair: float64 [pairs, 2]."""
        return answer_logps(model, flattened(batch, "input_ids", "attention_mask", "completion_mask")).view(-1, 2)

    def loss_sum(self, outputs: "Tensor", batch: Batch) -> "Tensor":
        return self._losses(outputs, batch).sum().float()

    def _losses(self, outputs: "Tensor", batch: Batch) -> "Tensor":
        """Return the loss of each pair: float64 [pairs]."""
        from torch.nn import functional

        settings, logps = self.settings, outputs.double()
        lengths = batch["completion_mask"].sum(-1)
        if settings.loss_type == "orpo":
            chosen, rejected = (logps / lengths).unbind(1)
            odds = preference.odds_ratio(chosen, rejected)
            return -chosen - settings.beta * functional.logsigmoid(odds)
        scores = logps if settings.loss_type == "simpo" else logps - batch[_REFERENCE]
        if settings.loss_type in ("sigmoid_norm", "ipo", "simpo"):
            scores = scores / lengths
        difference = scores[:, 0] - scores[:, 1]
        if settings.loss_type == "ipo":
            return (difference - 1 / (2 * settings.beta)) ** 2
        margin = settings.beta * difference - (settings.simpo_gamma if settings.loss_type == "simpo" else 0.0)
        if settings.loss_type == "hinge":
            return functional.relu(1 - margin)
        return preference.sigmoid(margin, settings.label_smoothing)

    # What the reference says

    @property
    def annotations(self) -> Mapping[str, Any]:
        return {} if self.settings.loss_type in _REFERENCE_FREE else {_REFERENCE: [0.0, 0.0]}

    def annotate(self, outputs: "Tensor", batch: Batch) -> Mapping[str, Sequence[Any]]:
        return {_REFERENCE: outputs.double().tolist()}

    # Scores

    def predict(self, outputs: "Tensor", batch: Batch) -> list[tuple[Any, Any]]:
        """Return the log-probabilities and the implicit rewards of each pair.

        Without a reference the reward is beta times the log-probability per token.
        """
        logps = outputs.double()
        free = self.settings.loss_type in _REFERENCE_FREE
        scores = logps / batch["completion_mask"].sum(-1) if free else logps - batch[_REFERENCE]
        return list(zip(logps.tolist(), (self.settings.beta * scores).tolist(), strict=True))

    def metrics(self, pairs: Sequence[tuple[Any, Any]], loss: float, survey: Survey) -> dict[str, Any]:
        def mean(values: Sequence[float]) -> float:
            return sum(values) / len(values)

        margins = [chosen - rejected for _, (chosen, rejected) in pairs]
        return {
            "loss": loss,
            "rewards/chosen": mean([rewards[0] for _, rewards in pairs]),
            "rewards/rejected": mean([rewards[1] for _, rewards in pairs]),
            "rewards/accuracies": mean([margin > 0 for margin in margins]),
            "rewards/margins": mean(margins),
            "logps/chosen": mean([logps[0] for logps, _ in pairs]),
            "logps/rejected": mean([logps[1] for logps, _ in pairs]),
        }

    def answers(self, outputs: "Tensor", batch: Batch, examples: Sequence[Example], survey: Survey) -> list[Answer]:
        """Return what `predict` does, by the names of the metrics: what is written of each pair of a scored split."""
        names = ("logps/chosen", "logps/rejected", "rewards/chosen", "rewards/rejected")
        return [dict(zip(names, (*logps, *rewards), strict=True)) for logps, rewards in self.predict(outputs, batch)]
