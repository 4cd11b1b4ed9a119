import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from onecurve.config import TaskSection
from onecurve.errors import BadRow, ConfigError
from onecurve.losses.preference import odds_ratio
from onecurve.tasks import load_task
from onecurve.tasks.base import Annotates, Generates, Survey
from onecurve.tasks.dpo import DpoSettings, Task
from tests.readings import reading
from tests.tasks.contract import Case, prepare

TASK = Task(DpoSettings())
ASKED = [{"role": "user", "content": "what is it?"}]
PAIR = {"prompt": "what is it?", "chosen": "a dog, as far as I can tell", "rejected": "no"}
ROWS = [
    PAIR,
    {"prompt": "and that?", "chosen": "the answer", "rejected": "nothing at all of the kind"},
    {
        "chosen": [*ASKED, {"role": "assistant", "content": "yes"}],
        "rejected": [*ASKED, {"role": "assistant", "content": "what do you think"}],
    },
]


def _logps(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probabilities and lengths of the answers, from a plain model's logits: chosen, rejected, and their tokens."""
    ids, attention, mask = (
        torch.cat(batch[name].unbind(1)) for name in ("input_ids", "attention_mask", "completion_mask")
    )
    logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1]
    tokens = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    sums, lengths = (tokens * mask[:, 1:]).sum(1), mask.sum(1)
    return *sums.chunk(2), *lengths.chunk(2)


def trl(loss_type: str = "sigmoid", beta: float = 0.1, smoothing: float = 0.0, gamma: float = 0.5) -> Any:
    """The losses as TRL 1.16 writes them: DPOTrainer._compute_loss, CPOTrainer for simpo; orpo as in its paper."""

    def loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
        chosen, rejected, len_chosen, len_rejected = _logps(model, batch)
        if loss_type == "orpo":
            mean_chosen, mean_rejected = chosen / len_chosen, rejected / len_rejected
            odds = [torch.exp(one) / (1 - torch.exp(one)) for one in (mean_chosen, mean_rejected)]
            return (-mean_chosen - beta * functional.logsigmoid(torch.log(odds[0] / odds[1]))).mean()
        if loss_type == "simpo":
            logits = chosen / len_chosen - rejected / len_rejected - gamma / beta
            return -functional.logsigmoid(beta * logits).mean()
        ref_chosen, ref_rejected = batch["reference_logps"].unbind(1)
        chosen_scores, rejected_scores = chosen - ref_chosen, rejected - ref_rejected
        delta = chosen_scores - rejected_scores
        mean_delta = chosen_scores / len_chosen - rejected_scores / len_rejected
        found = {
            "sigmoid": -functional.logsigmoid(beta * delta) * (1 - smoothing)
            - functional.logsigmoid(-beta * delta) * smoothing,
            "hinge": torch.relu(1 - beta * delta),
            "ipo": (mean_delta - 1 / (2 * beta)) ** 2,
            "sigmoid_norm": -functional.logsigmoid(beta * mean_delta),
        }
        return found[loss_type].mean()

    return loss


NOT_FIXED = float("nan")  # at logits of zero the loss is what the reference makes of it
CASES = {
    "dpo": Case(ROWS, nats_per_item=NOT_FIXED, oracle=trl()),
    "dpo, smoothed": Case(
        ROWS, {"label_smoothing": 0.2, "beta": 0.5}, nats_per_item=NOT_FIXED, oracle=trl(beta=0.5, smoothing=0.2)
    ),
    "dpo, simpo": Case(
        ROWS,
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0},
        nats_per_item=NOT_FIXED,
        oracle=trl("simpo", 2.0, gamma=1.0),
    ),
}


@pytest.mark.parametrize("loss_type", ["sigmoid", "sigmoid_norm", "hinge", "ipo", "orpo", "simpo"])
def test_loss_and_gradient_are_those_of_trl(loss_type: str, tiny_llama: Any) -> None:
    case = prepare(Case(ROWS, {"loss_type": loss_type}, task="dpo"), tiny_llama)
    batch = case.batch()
    gradients = []
    for compute in (
        lambda model: case.task.loss_sum(case.task.forward(model, batch), batch) / len(ROWS),
        lambda model: trl(loss_type)(model, batch),
    ):
        model = copy.deepcopy(case.model)
        loss = compute(model)
        loss.backward()
        gradients.append((loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    (ours, our_gradient), (theirs, their_gradient) = gradients
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert bool(their_gradient.any())
    assert float((our_gradient - their_gradient).norm() / their_gradient.norm()) < 1e-5


def test_the_odds_of_equal_probabilities_have_the_ratio_one() -> None:
    assert odds_ratio(torch.tensor(-0.7), torch.tensor(-0.7)).item() == 0


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", ["sigmoid", "sigmoid_norm", "hinge", "ipo"])
def test_what_trl_itself_computes_is_the_loss_of_our_batch(loss_type: str, tiny_llama: Any, tmp_path: Any) -> None:
    trl_module = pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    case = prepare(Case(ROWS[:2], {"beta": 0.3, "loss_type": loss_type}, task="dpo"), tiny_llama)
    reference = AutoModelForCausalLM.from_pretrained(tiny_llama)
    trainer = trl_module.DPOTrainer(
        copy.deepcopy(case.model),
        ref_model=reference,
        args=trl_module.DPOConfig(
            output_dir=str(tmp_path),
            beta=0.3,
            loss_type=loss_type,
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
                    "chosen": [{"role": "assistant", "content": row["chosen"]}],
                    "rejected": [{"role": "assistant", "content": row["rejected"]}],
                }
                for row in ROWS[:2]
            ]
        ),
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    batch = {  # side by side what they have below each other
        name: torch.stack(inputs[name].chunk(2), dim=1) for name in ("input_ids", "attention_mask", "completion_mask")
    }
    with torch.no_grad():
        said = case.task.annotate(case.task.forward(reference.eval(), batch), batch)
    batch["reference_logps"] = torch.tensor(said["reference_logps"])
    theirs = trainer.compute_loss(trainer.model.eval(), inputs)
    theirs.backward()
    ours = case.task.loss_sum(case.task.forward(case.model, batch), batch) / 2
    ours.backward()
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    gradients = [
        torch.cat([p.grad.flatten() for p in one.parameters() if p.grad is not None])
        for one in (case.model, trainer.model)
    ]
    assert bool(gradients[1].any())
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", ["simpo", "orpo"])
def test_losses_without_a_reference_are_those_of_trl_s_own_functions(loss_type: str, tiny_llama: Any) -> None:
    """Of ORPO the term of odds: TRL's other term counts the prompts too, and the paper's does not."""
    pytest.importorskip("trl")
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    settings = {"loss_type": loss_type, "beta": 0.3} | ({"simpo_gamma": 0.7} if loss_type == "simpo" else {})
    case = prepare(Case(ROWS, settings, task="dpo"), tiny_llama)
    batch = case.batch()
    ids, labels = batch["input_ids"], batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    trainer: Any = SimpleNamespace(
        alpha=0.0,
        loss_type=loss_type,
        simpo_gamma=0.7,
        beta=0.3,
        label_smoothing=0.0,
        accelerator=SimpleNamespace(device="cpu"),
    )
    gradients = []
    for is_ours in (True, False):
        model = copy.deepcopy(case.model)
        logits = model(input_ids=ids.flatten(0, 1), attention_mask=batch["attention_mask"].flatten(0, 1)).logits
        logps = CPOTrainer.get_batch_logps(logits, labels.flatten(0, 1), average_log_prob=True)
        chosen, rejected = logps.view(-1, 2).unbind(1)
        if is_ours:
            loss = case.task.loss_sum(case.task.forward(model, batch), batch)
        elif loss_type == "simpo":
            loss = CPOTrainer.cpo_loss(trainer, chosen, rejected)[0].sum()
        else:
            loss = -chosen.sum() - ORPOTrainer.odds_ratio_loss(trainer, chosen, rejected)[0].sum()
        loss.backward()
        gradients.append((loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    (ours, our_gradient), (theirs, their_gradient) = gradients
    assert ours == pytest.approx(theirs, rel=1e-5) and bool(their_gradient.any())
    assert float((our_gradient - their_gradient).norm() / their_gradient.norm()) < 1e-5


def _encode(row: dict[str, Any], tokenizer: Any, max_length: int = 256, truncate: bool = False) -> Any:
    TASK.check(row)
    return TASK.encode(row, Survey(), reading(tokenizer, max_length), truncate)


def test_only_the_answers_and_their_end_tokens_are_learnt(tokenizer: Any) -> None:
    (example,) = _encode(PAIR, tokenizer)
    start = "<|im_start|>user\nwhat is it?<|im_end|>\n<|im_start|>assistant\n"
    assert TASK.describe(example, Survey(), tokenizer) == (
        f"{start}«a dog, as far as I can tell<|im_end|>»\n is better than {start}«no<|im_end|>»\n"
    )
    prompt = TASK.prompt({"prompt": "what is it?"}, reading(tokenizer))["input_ids"]
    assert tokenizer.decode(prompt) == start
    assert example["chosen_ids"][: len(prompt)] == prompt


def test_of_whole_texts_the_answer_is_what_comes_after_the_shared_beginning(tokenizer: Any) -> None:
    (example,) = _encode({"chosen": "Human: hi Assistant: hello", "rejected": "Human: hi Assistant: go"}, tokenizer)
    assert "Human: hi Assistant:« hello" in TASK.describe(example, Survey(), tokenizer)


def test_what_is_cut_off_is_not_preferred(tokenizer: Any) -> None:
    assert _encode({**PAIR, "prompt": "what " * 50}, tokenizer, max_length=40, truncate=True) == []


def test_the_loss_needs_what_the_reference_said(tiny_llama: Any) -> None:
    case = prepare(CASES["dpo"] if CASES["dpo"].task else Case(ROWS, task="dpo"), tiny_llama)
    batch = case.batch()
    del batch["reference_logps"]
    with pytest.raises(KeyError, match="reference_logps"):
        case.task.loss_sum(torch.zeros(3, 2), batch)


def test_what_needs_no_reference_has_none() -> None:
    assert TASK.classes is None  # so that no criterion is put in the place of its loss
    assert isinstance(TASK, Annotates) and isinstance(TASK, Generates)
    assert TASK.annotations
    assert not Task(DpoSettings(loss_type="orpo")).annotations
    assert not Task(DpoSettings(loss_type="simpo")).annotations


def test_rewards_are_trl_s_by_name_and_value() -> None:
    batch = {"reference_logps": torch.tensor([[-5.0, -5.0], [-3.0, -1.0]])}
    pairs = TASK.predict(torch.tensor([[-4.0, -6.0], [-4.0, -1.0]]), batch)
    assert TASK.metrics(pairs, 0.6, Survey()) == {
        "loss": 0.6,
        "rewards/chosen": pytest.approx(0.0, abs=1e-7),
        "rewards/rejected": pytest.approx(-0.05),
        "rewards/accuracies": 0.5,
        "rewards/margins": pytest.approx(0.05),
        "logps/chosen": -4.0,
        "logps/rejected": -3.5,
    }


def test_the_predictions_of_a_split_have_each_pair_s_numbers_by_the_same_names() -> None:
    batch = {"reference_logps": torch.tensor([[-5.0, -5.0], [-3.0, -1.0]])}
    first, second = TASK.answers(torch.tensor([[-4.0, -6.0], [-4.0, -1.0]]), batch, [{}, {}], Survey())
    expected = {"logps/chosen": -4.0, "logps/rejected": -6.0, "rewards/chosen": 0.1, "rewards/rejected": -0.1}
    assert first == pytest.approx(expected)
    assert second["rewards/chosen"] == pytest.approx(-0.1) and second["rewards/rejected"] == 0


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"beta": 0.0}, "beta"),
        ({"label_smoothing": 0.5}, "label_smoothing"),
        ({"loss_type": "ipo", "label_smoothing": 0.1}, "no effect with loss_type ipo"),
        ({"simpo_gamma": 1.0}, "simpo_gamma has no effect"),
        ({"loss_type": "orpo", "reference": "some/model"}, "reference has no effect"),
    ],
)
def test_settings_without_sense_are_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        load_task(TaskSection(name="dpo", **settings))


def test_a_reference_that_is_not_there_or_reads_other_tokens_is_refused(tokenizer: Any, tiny_bert: Any) -> None:
    for path, why in (("./nowhere", "no such folder"), (str(tiny_bert), "another vocabulary")):
        with pytest.raises(ConfigError, match=why):
            Task(DpoSettings(reference=path)).check_other_model(reading(tokenizer), Survey())


@pytest.mark.parametrize("row", [ROWS[0], ROWS[2], {"chosen": "Human: hi Bot: hello", "rejected": "Human: hi Bot: go"}])
def test_a_row_is_asked_what_its_answers_follow_in_training(row: dict[str, Any], tokenizer: Any) -> None:
    TASK.check_input(row)
    prompt = TASK.prompt(row, reading(tokenizer))["input_ids"]
    (example,) = _encode(row, tokenizer)
    assert prompt == example["chosen_ids"][: example["chosen_mask"].index(1)]
    one_answer = {name: value for name, value in row.items() if name != "rejected"}
    if not isinstance(row["chosen"], str):
        assert TASK.prompt(one_answer, reading(tokenizer))["input_ids"] == prompt
    elif "prompt" not in row:
        with pytest.raises(BadRow, match="does not tell where its answer begins"):
            TASK.prompt(one_answer, reading(tokenizer))


def test_a_prompt_that_asks_nothing_is_refused(tokenizer: Any) -> None:
    with pytest.raises(BadRow, match="prompt is missing"):
        TASK.prompt({"prompt": None}, reading(tokenizer))
    with pytest.raises(BadRow, match="ends with an assistant turn"):
        TASK.prompt({"prompt": [*ASKED, {"role": "assistant", "content": "x"}]}, reading(tokenizer))
