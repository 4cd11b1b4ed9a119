import copy
import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.nn import functional

from onecurve.tasks import task_names
from onecurve.tasks.base import IGNORE_INDEX
from tests.readings import reading
from tests.tasks.contract import (
    CASES,
    CHECKS,
    Prepared,
    check_batch_is_the_sum_of_its_examples,
    check_num_items_counts_the_terms,
    check_transformers_computes_the_same,
    prepare,
)

CLASSIFIERS = [name for name, case in CASES.items() if case.task == "text_classification"]
LANGUAGE_MODELS = [name for name in CASES if name not in CLASSIFIERS]


@pytest.fixture(scope="module")
def prepared(request: pytest.FixtureRequest) -> dict[str, Prepared]:
    return {name: prepare(case, request.getfixturevalue(case.model)) for name, case in CASES.items()}


@pytest.fixture
def case(request: pytest.FixtureRequest, prepared: dict[str, Prepared]) -> Prepared:
    one = copy.copy(prepared[request.param])
    one.task = copy.copy(one.task)  # a bug planted in it dies with the test
    return one


every_case = pytest.mark.parametrize("case", CASES, indirect=True)


def test_every_task_of_the_folder_is_under_contract() -> None:
    assert {case.task for case in CASES.values()} == set(task_names())


def test_a_task_is_read_and_set_up_before_anything_heavy_is_imported() -> None:
    code = (
        "import sys; from onecurve.config import TaskSection; from onecurve.tasks import load_task, task_names\n"
        "for name in task_names(): load_task(TaskSection(name=name))\n"
        "print(*{'torch', 'transformers', 'evaluate', 'datasets'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


@every_case
@pytest.mark.parametrize("check", CHECKS)
def test_the_contract_holds(case: Prepared, check: Any) -> None:
    check(case)


@every_case
def test_the_loss_is_float32_whatever_the_logits_are_and_has_a_gradient(case: Prepared) -> None:
    batch = case.batch()
    logits = case.task.forward(case.model, batch).detach().requires_grad_()
    loss = case.task.loss_sum(logits.bfloat16(), batch)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert logits.grad is not None and bool((logits.grad != 0).any())


@every_case
def test_examples_are_plain_and_batches_are_by_example(case: Prepared) -> None:
    assert json.loads(json.dumps(case.examples)) == case.examples
    batch = case.batch()
    assert {"input_ids", "attention_mask", "labels"} <= set(batch)
    assert {len(tensor) for tensor in batch.values()} == {len(case.examples)}
    assert batch["attention_mask"].sum(-1).tolist() == [len(example["input_ids"]) for example in case.examples]


@every_case
def test_truncation_is_obeyed_and_only_when_asked(case: Prepared, request: pytest.FixtureRequest) -> None:
    rows = CASES[request.node.callspec.params["case"]].rows
    for row in rows:
        short = case.task.encode(row, case.survey, reading(case.tokenizer, 4), truncate=True)
        assert all(len(example["input_ids"]) <= 4 for example in short)
    read = reading(case.tokenizer, 128)
    whole = [example for row in rows for example in case.task.encode(row, case.survey, read, truncate=False)]
    assert whole == case.examples


@every_case
def test_a_split_is_scored_in_plain_values_and_always_has_its_loss(case: Prepared) -> None:
    batch = case.batch()
    with torch.no_grad():
        pairs = case.task.predict(case.task.forward(case.model, batch), batch)
    assert len(pairs) in (0, len(case.examples))
    scores = case.task.metrics(json.loads(json.dumps(pairs)), 1.5, case.survey)
    assert scores["loss"] == 1.5
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


@every_case
def test_an_example_can_be_shown(case: Prepared) -> None:
    for example in case.examples:
        assert "«" in case.task.describe(example, case.survey, case.tokenizer)


def _divides_by_the_count(task: Any) -> None:
    right = task.loss_sum
    task.loss_sum = lambda logits, batch: right(logits, batch) / task.num_items(batch)


def _counts_one_too_many(task: Any) -> None:
    right = task.num_items
    task.num_items = lambda batch: right(batch) + 1


def _counts_tokens_read(task: Any) -> None:
    task.num_items = lambda batch: int(batch["attention_mask"].sum())


def _predicts_the_token_it_reads(task: Any) -> None:
    def loss_sum(logits: Any, batch: Any) -> Any:
        read = batch["input_ids"][:, :-1][batch["labels"][:, 1:] != IGNORE_INDEX]
        return functional.cross_entropy(logits, read, reduction="sum")

    task.loss_sum = loss_sum


def _learns_padding(task: Any) -> None:
    right = task.collate

    def collate(examples: Any, reading: Any) -> Any:
        batch, pad_id = right(examples, reading), reading.tokenizer.pad_token_id
        return {**batch, "labels": batch["labels"].where(batch["attention_mask"] == 1, pad_id)}

    task.collate = collate


def _reads_padding(task: Any) -> None:
    right = task.collate

    def collate(examples: Any, reading: Any) -> Any:
        batch = right(examples, reading)
        return {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}

    task.collate = collate


def _mistakes_the_label(task: Any) -> None:
    right = task.loss_sum
    task.loss_sum = lambda logits, batch: right(logits, {**batch, "labels": batch["labels"].roll(1, 0)})


PLANTED = [
    (_divides_by_the_count, check_batch_is_the_sum_of_its_examples, list(CASES)),
    (_counts_one_too_many, check_num_items_counts_the_terms, list(CASES)),
    (_counts_tokens_read, check_num_items_counts_the_terms, list(CASES)),
    (_predicts_the_token_it_reads, check_transformers_computes_the_same, LANGUAGE_MODELS),
    (_learns_padding, check_batch_is_the_sum_of_its_examples, LANGUAGE_MODELS),
    (_reads_padding, check_batch_is_the_sum_of_its_examples, [n for n in CLASSIFIERS if "decoder" not in n]),
    (_mistakes_the_label, check_transformers_computes_the_same, CLASSIFIERS),
]


@pytest.mark.parametrize(
    ("plant", "check", "case"),
    [pytest.param(plant, check, name, id=f"{plant.__name__}-{name}") for plant, check, on in PLANTED for name in on],
    indirect=["case"],
)
def test_a_planted_bug_breaks_the_contract(plant: Any, check: Any, case: Prepared) -> None:
    plant(case.task)
    with pytest.raises(AssertionError):
        check(case)


@pytest.mark.parametrize("case", LANGUAGE_MODELS, indirect=True)
def test_only_the_independent_oracle_sees_a_lost_shift(case: Prepared) -> None:
    _predicts_the_token_it_reads(case.task)
    check_batch_is_the_sum_of_its_examples(case)
    check_num_items_counts_the_terms(case)
