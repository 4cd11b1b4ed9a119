import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from onecurve.cli import main
from onecurve.errors import BadRow, ConfigError
from onecurve.tasks.base import Asked, Recognises, Survey
from onecurve.tasks.reward import RewardSettings, Task
from tests.launching import train, write_recipe
from tests.readings import reading
from tests.tasks.contract import Case, prepare

TASK = Task(RewardSettings())
ASKED = [{"role": "user", "content": "what is it?"}]
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("a dog, as far as I can tell", "no"))
PROMPT = {"prompt": "what is it?", "chosen": "a dog, as far as I can tell", "rejected": "no"}
EXPLICIT = {"prompt": ASKED, "chosen": [GOOD], "rejected": [BAD]}
IMPLICIT = {"chosen": [*ASKED, GOOD], "rejected": [*ASKED, BAD]}
ROWS = [PROMPT, {"prompt": "and that?", "chosen": "the answer", "rejected": "nothing at all of the kind"}, IMPLICIT]


def _trl(coefficient: float = 0.0) -> Any:
    """TRL 1.16's RewardTrainer.compute_loss: the chosen rows first, then the rejected ones."""

    def loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
        ids, mask = (torch.cat(batch[name].unbind(1)) for name in ("input_ids", "attention_mask"))
        chosen, rejected = model(input_ids=ids, attention_mask=mask).logits.squeeze(-1).chunk(2)
        found = -functional.logsigmoid(chosen - rejected - batch.get("margin", 0.0)).mean()
        return found + coefficient * torch.mean((chosen + rejected) ** 2)

    return loss


CASES = {
    "reward": Case(ROWS, nats_per_item=0.6931471805599453, oracle=_trl()),
    "reward, centred": Case(
        ROWS[:2],
        {"center_rewards_coefficient": 0.1},
        model="tiny_bert",
        nats_per_item=0.6931471805599453,
        oracle=_trl(0.1),
    ),
}

MARGINS = [{**ROWS[0], "margin": 1.5}, ROWS[1], {**ROWS[2], "margin": -0.25}]
CASES["reward, margins"] = Case(MARGINS, nats_per_item=math.nan, oracle=_trl())


def _encode(row: dict[str, Any], tokenizer: Any, max_length: int = 256, truncate: bool = False) -> Any:
    TASK.check(row)
    return TASK.encode(row, Survey(), reading(tokenizer, max_length), truncate)


def test_every_form_of_a_pair_becomes_the_same_example(tokenizer: Any) -> None:
    forms: list[dict[str, Any]] = [
        EXPLICIT,
        IMPLICIT,
        {"prompt": "what is it?", **IMPLICIT},  # as in UltraFeedback
        {"prompt": ASKED, "chosen": GOOD, "rejected": BAD},
        {"prompt": [{"from": "human", "value": "what is it?"}], "chosen": {"from": "gpt", "value": GOOD["content"]}}
        | {"rejected": {"from": "gpt", "value": "no"}},
    ]
    expected = _encode(PROMPT, tokenizer)
    for form in forms:
        assert _encode(form, tokenizer) == expected
    (example,) = expected
    text = tokenizer.apply_chat_template([*ASKED, GOOD], tokenize=False)
    assert tokenizer.decode(example["chosen_ids"]) == text


def test_a_system_prompt_stands_first(tokenizer: Any) -> None:
    (example,) = _encode({**PROMPT, "system": "be short"}, tokenizer)
    assert tokenizer.decode(example["rejected_ids"]).startswith("<|im_start|>system\nbe short<|im_end|>\n")


def test_whole_texts_are_read_as_they_are_and_end_with_the_end_token(tokenizer: Any) -> None:
    (example,) = _encode({"chosen": "Human: hi Assistant: hello", "rejected": "Human: hi Assistant: go"}, tokenizer)
    assert tokenizer.decode(example["chosen_ids"]).endswith("Assistant: hello" + tokenizer.eos_token)


def test_without_a_chat_template_a_separator_joins_prompt_and_answer(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    (example,) = _encode(PROMPT, tokenizer)
    assert tokenizer.decode(example["rejected_ids"], skip_special_tokens=True) == "what is it?\nno"
    with pytest.raises(ConfigError, match="no chat template"):
        _encode({**PROMPT, "system": "be short"}, tokenizer)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "are the same"),
        ({"prompt": "q", "chosen": "a", "rejected": None}, "rejected is missing"),
        ({"prompt": "q", "chosen": " ", "rejected": "a"}, "chosen is empty"),
        ({"chosen": "a", "rejected": [BAD]}, "the same form"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "has no prompt"),
        ({"prompt": "another", **IMPLICIT}, "begins with another prompt"),
        ({"chosen": [*ASKED, GOOD], "rejected": [{"role": "user", "content": "x"}, BAD]}, "the same prompt"),
        ({"chosen": [*ASKED, GOOD], "rejected": ASKED}, "must end with an answer"),
        ({"chosen": "a", "rejected": "b", "system": "s"}, "no prompt, so system"),
        ({**PROMPT, "margin": "much"}, "margin must be a finite number; got 'much'"),
    ],
)
def test_a_row_that_is_no_pair_is_refused(row: dict[str, Any], why: str) -> None:
    with pytest.raises(BadRow, match=why):
        TASK.check(row)


def test_a_pair_whose_difference_is_cut_off_is_no_example(tokenizer: Any) -> None:
    row = {"prompt": "what " * 50, "chosen": "a", "rejected": "b"}
    assert _encode(row, tokenizer, max_length=20, truncate=True) == []
    (whole,) = _encode(PROMPT, tokenizer)
    limit = TASK.length(whole) - 1
    (example,) = _encode(PROMPT, tokenizer, max_length=limit, truncate=True)
    assert len(example["chosen_ids"]) == TASK.length(example) == limit
    assert TASK.num_tokens(example) == limit + len(example["rejected_ids"])


def test_accuracy_and_margin_are_those_of_the_scores() -> None:
    scores = torch.tensor([[2.0, 1.0], [0.0, 0.5], [1.0, 1.0]])
    found = TASK.metrics(TASK.predict(scores, {}), 0.7, Survey())
    assert found == {"loss": 0.7, "accuracy": 1 / 3, "margin": pytest.approx(0.5 / 3)}


def test_a_trained_model_scores_one_answer(tokenizer: Any) -> None:
    assert isinstance(TASK, Asked) and isinstance(TASK, Recognises)
    read = reading(tokenizer, 256)
    asked = TASK.question({"prompt": "what is it?", "chosen": GOOD["content"]}, read, False)
    (pair,) = _encode(PROMPT, tokenizer)
    assert asked == {"chosen_ids": pair["chosen_ids"]}
    with pytest.raises(BadRow, match="must end with an answer"):
        TASK.question({"chosen": ASKED}, read, False)
    batch = TASK.collate([asked], read)
    assert batch["input_ids"].shape[:2] == (1, 1)
    assert json.dumps(TASK.replies(torch.tensor([[1.5]]), batch, read)) == '[{"score": 1.5}]'


@pytest.mark.slow
@pytest.mark.parametrize(("margin", "coefficient"), [(False, None), (True, 0.1)], ids=["plain", "margin, centred"])
def test_what_trl_itself_computes_is_the_loss_of_our_batch(
    margin: bool, coefficient: float | None, tiny_llama: Path, tmp_path: Path
) -> None:
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoTokenizer

    case = prepare(Case(ROWS[:2], {"center_rewards_coefficient": coefficient}, task="reward"), tiny_llama)
    pairs: list[dict[str, Any]] = [
        {"prompt": [{"role": "user", "content": row["prompt"]}]}
        | {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
        | ({"margin": number} if margin else {})
        for row, number in zip(ROWS[:2], (1.5, 0.5), strict=True)
    ]
    trainer = trl.RewardTrainer(
        copy.deepcopy(case.model),
        args=trl.RewardConfig(
            output_dir=str(tmp_path),
            center_rewards_coefficient=coefficient,
            report_to=[],
            use_cpu=True,
            max_length=None,
            gradient_checkpointing=False,
            bf16=False,
            per_device_train_batch_size=2,
        ),
        processing_class=AutoTokenizer.from_pretrained(tiny_llama),
        train_dataset=Dataset.from_list(pairs),
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    batch = {name: torch.stack(inputs[name].chunk(2), dim=1) for name in ("input_ids", "attention_mask")}
    batch |= {"margin": inputs["margin"]} if margin else {}
    model = trainer.model.eval()
    trainer.compute_loss(model, dict(inputs)).backward()
    theirs = float(trainer.compute_loss(model, dict(inputs)))
    ours = case.task.loss_sum(case.task.forward(case.model, batch), batch) / 2
    ours.backward()
    assert float(ours) == pytest.approx(theirs, rel=1e-5) and ("margin" in inputs) == margin
    for own, other in zip(case.model.parameters(), model.parameters(), strict=True):
        assert (own.grad is None) == (other.grad is None)
        if own.grad is not None:
            torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=1e-6)
    assert any(bool(p.grad.any()) for p in model.parameters() if p.grad is not None)


@pytest.mark.slow
@pytest.mark.distributed
def test_every_strategy_trains_one_reward_model_and_plain_transformers_reads_it(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    pairs = [{"prompt": f"what is {n}?", "chosen": f"it is {n}", "rejected": "no" * (1 + n % 3)} for n in range(11)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        output_dir="unused",
        task={"name": "reward"},
        model={"path": str(tiny_llama)},
        data={"train": str(tmp_path / "pairs.jsonl"), "cache_dir": str(tmp_path / "cache"), "max_length": 128},
        optim={"lr": 1e-2},
        train={"max_steps": 3, "global_batch_size": 4, "micro_batch_size": 2, "mixed_precision": "no"},
    )
    one = train(recipe, tmp_path / "one", "python")
    assert "score.weight" in one.stdout  # a head drawn at random is named
    for how in ("ddp", "zero3"):
        other = train(recipe, tmp_path / how, how)
        for ours, theirs in zip(one.events("train"), other.events("train"), strict=True):
            assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5)
            assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=5e-5)
    (tmp_path / "asked.jsonl").write_text(json.dumps({"prompt": "what is 3?", "chosen": "it is 3"}) + "\n")
    folder = tmp_path / "zero3" / "model"
    assert main(["predict", str(folder), "--input", str(tmp_path / "asked.jsonl"), "--json"]) == 0
    ours = json.loads(capsys.readouterr().out)["score"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    turns = [{"role": "user", "content": "what is 3?"}, {"role": "assistant", "content": "it is 3"}]
    inputs = tokenizer(
        tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False, return_tensors="pt"
    )
    with torch.no_grad():
        assert ours == pytest.approx(model(**inputs).logits.item(), abs=1e-5)
