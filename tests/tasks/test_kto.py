import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from onecurve.config import DataSection
from onecurve.data.checking import Report
from onecurve.data.examples import Examples, write_examples
from onecurve.data.pool import wide
from onecurve.data.splits import Split, joined
from onecurve.errors import BadRow, DataError
from onecurve.losses.preference import kto
from onecurve.step import accumulate
from onecurve.tasks.base import TALLY, Annotates, Generates, Mismatches, Pools, Survey
from onecurve.tasks.kto import KtoSettings, Task
from tests.data.byte_level import byte_tokenizer, load, write_jsonl
from tests.readings import reading
from tests.tasks.contract import Case, Prepared, check_another_cut_has_the_same_gradient, prepare

TASK = Task(KtoSettings())
ASKED = [{"role": "user", "content": "what is it?"}]
ROWS = [
    {"prompt": "what is it?", "completion": "a dog, as far as I can tell", "label": True},
    {"prompt": "and that?", "completion": "nothing at all of the kind", "label": False},
    {"completion": [*ASKED, {"role": "assistant", "content": "yes"}], "label": "true"},
    {"prompt": ASKED, "completion": [{"role": "assistant", "content": "what do you think"}], "label": 0},
]


def trl(beta: float = 0.1, desirable: float = 1.0, undesirable: float = 1.0) -> Any:
    """As KTOTrainer._compute_loss of TRL 1.16 writes it."""

    def logps(model: Any, batch: dict[str, Tensor], start: str) -> Tensor:
        ids, mask = batch[f"{start}input_ids"], batch[f"{start}completion_mask"]
        logits = model(input_ids=ids, attention_mask=batch[f"{start}attention_mask"]).logits[:, :-1]
        return (logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0] * mask[:, 1:]).sum(1)

    def loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
        own = logps(model, batch, "") - batch["reference_logps"][:, 0]
        gone = (logps(model, batch, "other_") - batch["reference_logps"][:, 1]).mean().detach().clamp(min=0)
        is_good = batch["label"] == 1
        losses = [desirable * (1 - torch.sigmoid(beta * (own[is_good] - gone)))]
        losses.append(undesirable * (1 - torch.sigmoid(beta * (gone - own[~is_good]))))
        return torch.cat(losses).mean()

    return loss


def gone_by(case: Prepared, nats: list[float]) -> None:
    """Let the reference find each other answer that much less likely than the model does, whatever the weights."""
    with torch.no_grad():
        said = case.task.forward(case.model, case.batch())
    for example, answer, gone in zip(case.examples, said[:, 1].tolist(), nats, strict=True):
        example["reference_logps"] = [example["reference_logps"][0], answer - gone]


NOT_FIXED = float("nan")  # at logits of zero the loss is what the reference makes of it
CASES = {
    "kto": Case(
        ROWS,
        {"beta": 0.5, "desirable_weight": 1.3, "undesirable_weight": 0.7},
        nats_per_item=NOT_FIXED,
        oracle=trl(0.5, 1.3, 0.7),
    ),
}


def test_loss_and_gradient_are_those_of_trl(tiny_llama: Any) -> None:
    case = prepare(Case(ROWS, task="kto"), tiny_llama)
    gone_by(case, [3.0] * len(ROWS))
    batch, gradients = case.batch(), []
    for compute in (
        lambda model: case.task.loss_sum(case.task.forward(model, batch), batch) / len(ROWS),
        lambda model: trl()(model, batch),
    ):
        model = copy.deepcopy(case.model)
        loss = compute(model)
        loss.backward()
        gradients.append((loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    (ours, our_gradient), (theirs, their_gradient) = gradients
    assert ours == pytest.approx(theirs, rel=1e-5) and bool(their_gradient.any())
    assert float((our_gradient - their_gradient).norm() / their_gradient.norm()) < 1e-5


def test_how_far_the_model_has_gone_is_of_the_global_batch(tiny_llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    case = prepare(Case(ROWS, task="kto"), tiny_llama)
    gone_by(case, [0.0, 4.0, 8.0, 12.0])
    check_another_cut_has_the_same_gradient(case)
    # Each micro-batch estimates it for itself
    monkeypatch.setitem(accumulate.__globals__, "Pools", type("Nobody", (), {}))
    with pytest.raises(AssertionError):
        check_another_cut_has_the_same_gradient(case)


def test_an_answer_keeps_its_digits_on_the_way_to_the_global_batch(tiny_llama: Any) -> None:
    case = prepare(Case(ROWS, task="kto"), tiny_llama)
    said = wide(case.task.forward(case.model, case.batch()))
    assert said.dtype == torch.float64 and not torch.equal(said, said.float().double())
    assert wide(said.bfloat16()).dtype == torch.float32


def test_how_far_the_model_has_gone_is_at_least_zero_and_moves_what_an_answer_is_worth() -> None:
    ratios, judged = torch.tensor([1.0, 1.0]), torch.tensor([True, False])
    still = kto(ratios, torch.tensor([-5.0, -1.0]), judged, 1.0, (1.0, 1.0))
    assert torch.equal(still, kto(ratios, torch.zeros(2), judged, 1.0, (1.0, 1.0)))
    gone = kto(ratios, torch.tensor([1.0, 3.0]), judged, 1.0, (1.0, 1.0))
    assert gone[0] > still[0] and gone[1] < still[1]


def test_each_prompt_is_read_with_another_example_s_answer(tokenizer: Any) -> None:
    examples = [one for row in ROWS[:2] for one in TASK.encode(row, Survey(), reading(tokenizer), False)]
    mixed = TASK.mismatch(*examples)
    told = TASK.describe({**mixed, "input_ids": mixed["other_ids"], "mask": mixed["other_mask"]}, Survey(), tokenizer)
    start = "<|im_start|>user\nwhat is it?<|im_end|>\n<|im_start|>assistant\n"
    assert told == f"{start}«nothing at all of the kind<|im_end|>»\n is desirable"
    assert TASK.describe(examples[1], Survey(), tokenizer).endswith(" is undesirable")
    assert [example[TALLY] for example in examples] == [{"desirable answers": 1}, {"undesirable answers": 1}]
    short = TASK.collate([mixed], reading(tokenizer, 12))
    assert {tensor.shape[1] for name, tensor in short.items() if tensor.dim() == 2} == {12}


def test_each_example_has_one_other_of_its_own_source(tmp_path: Any) -> None:
    parts = []
    for name, count in (("first", 5), ("second", 4)):
        (tmp_path / name).mkdir()
        write_examples(tmp_path / name, [{"number": number} for number in range(count)], lambda _: (0, 0))
        parts.append(Split(f"train/{name}", Report(), Examples(tmp_path / name), key=name))
    whole = joined("train", parts)
    assert sorted(whole.others.tolist()) == list(range(9)) and not (whole.others == np.arange(9)).any()
    assert whole.others[:5].tolist() == parts[0].others.tolist()
    assert (whole.others[5:] - 5).tolist() == parts[1].others.tolist()


def test_a_single_example_has_no_other_and_is_refused(tmp_path: Any) -> None:
    row = {"prompt": "what?", "completion": "that", "label": True}
    train = write_jsonl(tmp_path / "train.jsonl", [row])
    settings = DataSection(train=train, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(DataError, match="has one example") as refused:
        load(settings, Task(KtoSettings()), byte_tokenizer())
    assert refused.value.where == "data.train"


def test_what_it_can() -> None:
    assert isinstance(TASK, Annotates) and isinstance(TASK, Pools) and isinstance(TASK, Mismatches)
    assert isinstance(TASK, Generates) and TASK.classes is None


@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_asked_what_its_answer_follows_in_training(row: dict[str, Any], tokenizer: Any) -> None:
    TASK.check_input(row)
    (example,) = TASK.encode(row, Survey(), reading(tokenizer), False)
    prompt = TASK.prompt(row, reading(tokenizer))["input_ids"]
    assert prompt == example["input_ids"][: example["mask"].index(1)]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "a", "completion": "b"}, "label is missing"),
        ({"prompt": "a", "completion": "b", "label": "good"}, "true or false; got 'good'"),
        ({"prompt": "a", "completion": "b", "label": 0.5}, "true or false"),
        ({"completion": "b", "label": True}, "prompt is missing"),
        ({"prompt": "a", "label": True}, "completion"),
        ({"prompt": "a", "completion": [*ASKED], "label": True}, "completion"),
    ],
)
def test_rows_without_sense_are_refused(row: dict[str, Any], why: str) -> None:
    with pytest.raises(BadRow, match=why):
        TASK.check(row)


def test_metrics_have_trl_s_names_and_none_where_no_answer_is_of_a_kind() -> None:
    pairs = [([-4.0, 0.2, 1.0], 1), ([-6.0, -0.1, -3.0], 0)]
    scores = TASK.metrics(pairs, 0.5, Survey())
    assert scores["rewards/margins"] == pytest.approx(0.3) and scores["kl"] == 0
    assert TASK.metrics(pairs[:1], 0.5, Survey())["rewards/margins"] is None


@pytest.mark.slow
def test_what_trl_itself_computes_is_the_loss_of_our_batch(tiny_llama: Any, tmp_path: Any) -> None:
    trl_module = pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    case = prepare(Case(ROWS[:2], {"beta": 0.3}, task="kto"), tiny_llama)
    reference = AutoModelForCausalLM.from_pretrained(tiny_llama)
    trainer = trl_module.KTOTrainer(
        copy.deepcopy(case.model),
        ref_model=reference,
        args=trl_module.KTOConfig(
            output_dir=str(tmp_path),
            beta=0.3,
            report_to=[],
            use_cpu=True,
            max_length=None,
            disable_dropout=True,
            gradient_checkpointing=False,
            bf16=False,
            per_device_train_batch_size=2,
        ),
        processing_class=AutoTokenizer.from_pretrained(tiny_llama),
        train_dataset=Dataset.from_list(
            [
                {
                    "prompt": [{"role": "user", "content": row["prompt"]}],
                    "completion": [{"role": "assistant", "content": row["completion"]}],
                    "label": row["label"],
                }
                for row in ROWS[:2]
            ]
        ),
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()
    with torch.no_grad():
        theirs = float(trainer.compute_loss(trainer.model, inputs))
        names = ("input_ids", "attention_mask", "completion_mask")
        batch = {name: inputs[name] for name in names} | {f"other_{name}": inputs[f"KL_{name}"] for name in names}
        batch["label"] = torch.as_tensor(inputs["label"]).long()
        said = case.task.annotate(case.task.forward(reference.eval(), batch), batch)
        batch["reference_logps"] = torch.tensor(said["reference_logps"])
        ours = float(case.task.loss_sum(case.task.forward(case.model, batch), batch)) / 2
    assert ours == pytest.approx(theirs, rel=1e-5)
