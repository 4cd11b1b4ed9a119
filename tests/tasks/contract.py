"""What the loop relies on in every task, as checks that raise; and one case for each kind of task."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from onecurve.config import TaskSection
from onecurve.tasks import load_task
from onecurve.tasks.base import Survey
from tests.readings import padding, reading

CHAT = [
    {"role": "user", "content": "what is the answer?"},
    {"role": "assistant", "content": "there is no answer."},
    {"role": "user", "content": "and the question?"},
    {"role": "assistant", "content": "none."},
]
TEXTS = ["the quick brown fox jumps over the lazy dog", "the dog", "we were happy with the film, and they were not."]


@dataclass(frozen=True)
class Case:
    """A task with rows of different lengths, enough for one padded batch."""

    task: str
    rows: list[dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    model: str = "tiny_llama"
    """The fixture with the model's folder."""
    nats_per_item: float | None = None
    """What one term of the loss is when every logit is zero; log(vocabulary) when absent."""


def labelled(*labels: Any, **columns: Any) -> list[dict[str, Any]]:
    return [{"text": text, "label": label, **columns} for text, label in zip(TEXTS, labels, strict=True)]


CASES = {
    "causal_lm": Case("causal_lm", [{"text": text} for text in TEXTS]),
    "sft": Case("sft", [{"messages": CHAT}, {"prompt": "what?", "response": "the dog"}]),
    "single_label": Case(
        "text_classification", labelled("no", "yes", "maybe"), model="tiny_bert", nats_per_item=math.log(3)
    ),
    "text_pairs": Case(
        "text_classification",
        labelled(0, 1, 1, text_pair="a dog sleeps"),
        model="tiny_bert",
        nats_per_item=math.log(2),
    ),
    "single_label_on_a_decoder": Case("text_classification", labelled(0, 1, 0), nats_per_item=math.log(2)),
    "multi_label": Case(
        "text_classification",
        labelled(["a", "b"], [], ["c"]),
        {"problem_type": "multi_label_classification"},
        model="tiny_bert",
        nats_per_item=math.log(2),
    ),
    "regression": Case(
        "text_classification",
        labelled(1, -1, 1.0),  # so that each squared distance to zero is one
        {"problem_type": "regression"},
        model="tiny_bert",
        nats_per_item=1.0,
    ),
}


@dataclass
class Prepared:
    """A case with everything loaded."""

    task: Any
    survey: Survey
    tokenizer: Any
    model: Any
    examples: list[dict[str, Any]]
    nats_per_item: float

    def batch(self, examples: list[dict[str, Any]] | None = None) -> dict[str, torch.Tensor]:
        return self.task.collate(examples or self.examples, padding(self.tokenizer.pad_token_id))

    def loss_sum(self, batch: dict[str, torch.Tensor]) -> float:
        with torch.no_grad():
            return float(self.task.loss_sum(self.task.forward(self.model, batch), batch))


def prepare(case: Case, folder: Any) -> Prepared:
    from transformers import AutoTokenizer

    task = load_task(TaskSection(name=case.task, **case.settings))
    for row in case.rows:
        task.check(row)
    survey = task.survey(case.rows)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    model = task.auto_model().from_pretrained(folder, **task.model_config(survey)).eval()
    with torch.no_grad():
        for weight in model.parameters():  # upstream starts at 0.02, where all logits look alike
            weight.mul_(4)
    read = reading(tokenizer, 128)
    examples = [example for row in case.rows for example in task.encode(row, survey, read, truncate=True)]
    return Prepared(task, survey, tokenizer, model, examples, case.nats_per_item or math.log(len(tokenizer)))


def check_batch_is_the_sum_of_its_examples(case: Prepared) -> None:
    alone = sum(case.loss_sum(case.batch([example])) for example in case.examples)
    assert math.isclose(case.loss_sum(case.batch()), alone, rel_tol=1e-5)


def check_num_items_counts_the_terms(case: Prepared) -> None:
    batch = case.batch()
    with torch.no_grad():
        logits = torch.zeros_like(case.task.forward(case.model, batch))
    terms = float(case.task.loss_sum(logits, batch)) / case.nats_per_item
    assert math.isclose(case.task.num_items(batch), terms, rel_tol=1e-5)
    assert case.task.num_items(batch) == sum(example["num_items"] for example in case.examples)


def check_transformers_computes_the_same(case: Prepared) -> None:
    batch = case.batch()
    with torch.no_grad():
        loss = float(case.model(**batch).loss)
    assert math.isclose(case.loss_sum(batch), loss * case.task.num_items(batch), rel_tol=1e-5)


CHECKS = [
    check_batch_is_the_sum_of_its_examples,
    check_num_items_counts_the_terms,
    check_transformers_computes_the_same,
]
