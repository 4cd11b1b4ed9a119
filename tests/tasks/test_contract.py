import copy
import json
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._pytree import tree_leaves, tree_map

from onecurve.data.collation import transformed
from onecurve.errors import BadRow, ConfigError
from onecurve.tasks import task_names
from onecurve.tasks.base import IGNORE_INDEX, Mismatches, Pools, RollsOut, Transforms
from tests.tasks.contract import (
    CHECKS,
    Prepared,
    all_cases,
    check_another_cut_has_the_same_gradient,
    check_batch_is_the_sum_of_its_examples,
    check_num_items_counts_the_terms,
    check_the_metrics_told_are_those_scored,
    check_the_oracle_computes_the_same,
    models_loss,
    prepare,
)

CASES = all_cases()


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
        f"settings = { {case.task: case.settings for case in CASES.values()} }\n"
        "for name in task_names(): load_task(TaskSection(name=name, **settings[name]))\n"
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
    outputs = tree_map(lambda leaf: leaf.detach().requires_grad_(), case.task.forward(case.model, batch))
    loss = case.task.loss_sum(tree_map(Tensor.bfloat16, outputs), batch)
    loss.sum().backward()
    assert loss.dtype == torch.float32 and loss.shape in ((), (len(case.task.terms),))
    wide = case.task.loss_sum(tree_map(lambda leaf: leaf.detach().bfloat16().float(), outputs), batch)
    assert loss.tolist() == pytest.approx(wide.tolist(), rel=1e-6)
    assert any(leaf.grad is not None and bool((leaf.grad != 0).any()) for leaf in tree_leaves(outputs))


@every_case
def test_examples_are_plain_and_batches_are_by_example(case: Prepared) -> None:
    said = getattr(case.task, "annotations", {})  # which may be bytes
    plain = [{name: value for name, value in one.items() if name not in said} for one in case.examples]
    assert json.loads(json.dumps(plain)) == plain
    batch = case.batch()
    assert {len(tensor) for tensor in batch.values()} == {len(case.examples)}
    if "chosen_ids" in case.examples[0]:
        assert batch["attention_mask"].sum((1, 2)).tolist() == [*map(case.task.num_tokens, case.examples)]
    elif "input_ids" in batch:
        if not isinstance(case.task, Pools | RollsOut):
            assert {"attention_mask", "labels"} <= {name.rpartition("/")[2] for name in batch}
        tokens = batch["attention_mask"].flatten(1).sum(-1)  # of all of an example's sequences
        longer = isinstance(case.task, Mismatches | RollsOut)  # by another's answer, or its own completion
        of_each = case.task.num_tokens if longer else (lambda example: len(example["input_ids"]))
        assert tokens.tolist() == [*map(of_each, case.examples)]


@every_case
def test_truncation_is_obeyed_and_only_when_asked(case: Prepared) -> None:
    for row in case.rows:
        try:
            short = case.task.encode(row, case.survey, replace(case.reading, max_length=4), truncate=True)
        except (BadRow, ConfigError) as error:
            assert "max_length" in str(error) or "cannot be cut" in str(error)
            continue
        assert all(case.task.length(example) <= 4 for example in short)
    whole = [
        example for row in case.rows for example in case.task.encode(row, case.survey, case.reading, truncate=False)
    ]
    assert whole == case.encoded


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
    told = [case.task.describe(example, case.survey, case.reading.tokenizer) for example in case.examples]
    assert all("«" in one for one in told) and re.search("«[^»]+»", " ".join(told)), "what is learnt is marked"
    assert len(set(told)) > 1, "examples differ"


# Planted bugs


def _divides_by_the_count(task: Any) -> None:
    right = task.loss_sum
    task.loss_sum = lambda outputs, batch: right(outputs, batch) / torch.tensor(task.num_items(batch))


def _counts_one_too_many(task: Any) -> None:
    right = task.num_items
    task.num_items = lambda batch: np.add(right(batch), 1)


def _counts_tokens_read(task: Any) -> None:
    task.num_items = lambda batch: int(batch["attention_mask"].sum())


def _predicts_the_token_it_reads(task: Any) -> None:
    def loss_sum(outputs: Any, batch: Any) -> Any:
        read = batch["input_ids"][:, :-1][batch["labels"][:, 1:] != IGNORE_INDEX]
        return functional.cross_entropy(outputs, read, reduction="sum")

    task.loss_sum = loss_sum


def _learns_padding(task: Any) -> None:
    right = task.collate

    def collate(examples: Any, reading: Any) -> Any:
        batch = right(examples, reading)
        return {**batch, "labels": batch["labels"].where(batch["labels"] != IGNORE_INDEX, 0)}

    task.collate = collate


def _reads_padding(task: Any) -> None:
    right = task.collate

    def collate(examples: Any, reading: Any) -> Any:
        batch = right(examples, reading)
        return {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}

    task.collate = collate


def _mistakes_the_label(task: Any) -> None:
    right = task.loss_sum
    task.loss_sum = lambda outputs, batch: right(outputs, {**batch, "labels": batch["labels"].roll(1, 0)})


def _looks_at_its_neighbours(task: Any) -> None:
    right = task.loss_sum
    task.loss_sum = lambda outputs, batch: right(
        tree_map(lambda leaf: leaf - leaf.mean(0, keepdim=True) ** 2, outputs), batch
    )


def _draws_without_a_key(task: Any) -> None:
    right = task.collate

    def collate(examples: Any, reading: Any) -> Any:
        batch = right(examples, reading)
        read = next(name for name in ("input_ids", "pixel_values", "input_values", "input_features") if name in batch)
        kept = torch.rand(batch[read].shape) < 0.5
        return {**batch, read: batch[read].where(kept, 7)}

    task.collate = collate


def _transforms_without_a_key(task: Any) -> None:
    right = task.transform
    task.transform = lambda example, rng, *rest: right(example, np.random.default_rng(), *rest)


def _draws_in_transform(case: Prepared) -> bool:
    if not isinstance(case.task, Transforms):
        return False
    one, other = (
        case.task.collate(transformed(case.task, case.examples[:1], [key], True, case.reading), case.reading)
        for key in (1, 2)
    )
    return any(one[name].shape != other[name].shape or not torch.equal(one[name], other[name]) for name in one)


def _labels_tokens(case: Prepared) -> bool:
    batch = case.batch()
    return {"input_ids", "labels"} <= batch.keys() and batch["labels"].shape == batch["input_ids"].shape


def _predicts_next_tokens(case: Prepared) -> bool:
    return _labels_tokens(case) and case.task.peft_task_type == "CAUSAL_LM"


def _is_padded_at_labels(case: Prepared) -> bool:
    labels = case.batch().get("labels")
    return labels is not None and labels.dim() == 2 and bool((labels == IGNORE_INDEX).any())


def _padding_is_seen(case: Prepared) -> bool:
    """Whether tokens look at what comes after them, as a decoder's never do."""
    return "attention_mask" in case.batch() and not all(
        getattr(module, "is_causal", True) for module in case.model.modules()
    )


def _reads_more_than_it_counts(case: Prepared) -> bool:
    batch = case.batch()
    return "attention_mask" in batch and int(batch["attention_mask"].sum()) != np.sum(case.task.num_items(batch))


def _has_several_labels(case: Prepared) -> bool:
    labels = case.batch().get("labels")
    return labels is not None and not torch.equal(labels, labels.roll(1, 0))


def _always(case: Prepared) -> bool:
    return True


def _adds_up(case: Prepared) -> bool:
    """Whether the loss is a sum over examples, none of which looks at another."""
    return not isinstance(case.task, Pools)


def _scores_more_than_it_tells(task: Any) -> None:
    right = task.metrics
    task.metrics = lambda *arguments: {**right(*arguments), "f2": None}


def _tells_more_than_it_scores(task: Any) -> None:
    task.metric_names = [*task.metric_names, "confusion_matrix"]


PLANTED = [
    (_divides_by_the_count, check_batch_is_the_sum_of_its_examples, _adds_up),
    (_counts_one_too_many, check_num_items_counts_the_terms, _always),
    (_counts_tokens_read, check_num_items_counts_the_terms, _reads_more_than_it_counts),
    (_predicts_the_token_it_reads, check_the_oracle_computes_the_same, _predicts_next_tokens),
    (_learns_padding, check_batch_is_the_sum_of_its_examples, _is_padded_at_labels),
    (_reads_padding, check_batch_is_the_sum_of_its_examples, _padding_is_seen),
    (_mistakes_the_label, check_the_oracle_computes_the_same, _has_several_labels),
    (_looks_at_its_neighbours, check_another_cut_has_the_same_gradient, _adds_up),
    (_draws_without_a_key, check_another_cut_has_the_same_gradient, _always),
    (_transforms_without_a_key, check_another_cut_has_the_same_gradient, _draws_in_transform),
    (_scores_more_than_it_tells, check_the_metrics_told_are_those_scored, _always),
    (_tells_more_than_it_scores, check_the_metrics_told_are_those_scored, _always),
]
"""A bug, the check that must see it, and which cases it can be planted in."""


@every_case
@pytest.mark.parametrize(("plant", "check", "fits"), PLANTED, ids=[plant.__name__ for plant, *_ in PLANTED])
def test_a_planted_bug_breaks_the_contract(plant: Any, check: Any, fits: Any, case: Prepared) -> None:
    if not fits(case):
        return  # the next test holds that each bug is planted somewhere
    plant(case.task)
    with pytest.raises((AssertionError, IndexError, ValueError, RuntimeError)):
        check(case)


@pytest.mark.parametrize(("plant", "fits"), [(plant.__name__, fits) for plant, _, fits in PLANTED])
def test_every_bug_is_planted_somewhere(plant: str, fits: Any, prepared: dict[str, Prepared]) -> None:
    assert any(fits(case) for case in prepared.values()), plant


@every_case
def test_a_task_says_whether_a_model_of_transformers_returns_its_loss(case: Prepared) -> None:
    if case.case.oracle is models_loss:
        assert case.task.has_models_loss
    elif case.task.has_models_loss:
        with torch.no_grad():
            assert models_loss(case.model, case.batch()).isfinite()


@every_case
def test_only_the_oracle_sees_a_lost_shift(case: Prepared) -> None:
    if _predicts_next_tokens(case):
        _predicts_the_token_it_reads(case.task)
        check_batch_is_the_sum_of_its_examples(case)
        check_num_items_counts_the_terms(case)
