"""A student learns from a teacher that is asked once: one curve under every launch form, and plain folders."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

from onecurve.data.examples import Examples
from onecurve.evaluation.annotation import FOLDER
from tests.launching import write_recipe
from tests.parity.test_strategies_draw_one_curve import TOLERANCE
from tests.tiny_models import build_tiny_bert, build_tiny_llama

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

WORDS = ["a dog", "no", "the answer is plain", "nothing at all", "yes", "what do you think of it"]
ANSWERS = [{"prompt": f"what is {number}?", "response": f"{WORDS[number % 6]} {number}"} for number in range(13)]
TEXTS = [{"text": f"{WORDS[number % 6]} {number}", "label": ["low", "high"][number % 2]} for number in range(13)]
LORA = ["--peft.method", "lora", "--peft.target_modules", "[q_proj, v_proj]"]


def _recipe(folder: Path, rows: list[dict[str, Any]], student: str, teacher: Path, **task: Any) -> Path:
    for name, count in (("train", 13), ("dev", 5)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:count]))
    return write_recipe(
        folder / "recipe.yaml",
        output_dir="unused",
        task={"name": "distillation", "teacher": str(teacher), **task},
        model={"path": student},
        data={
            "train": str(folder / "train.jsonl"),
            "eval": str(folder / "dev.jsonl"),
            "cache_dir": str(folder / "cache"),
            "max_length": 128,
        },
        optim={"lr": 1e-2},
        train={"max_steps": 4, "global_batch_size": 4, "micro_batch_size": 2, "mixed_precision": "no"},
        checkpoint={"every": 2},
    )


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answers")
    student = build_tiny_llama(folder / "student")
    teacher = build_tiny_llama(folder / "teacher", seed=1, hidden_size=96, intermediate_size=160, num_hidden_layers=3)
    return _recipe(folder, ANSWERS, str(student), teacher, student_task="sft", top_k=7, divergence="jsd")


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory, forks: Any) -> Path:
    """With a teacher that a run of the student's task made."""
    folder = tmp_path_factory.mktemp("labels")
    student = build_tiny_bert(folder / "student")
    build_tiny_bert(folder / "larger", hidden_size=96, num_hidden_layers=3)
    recipe = _recipe(folder, TEXTS, str(student), folder / "taught" / "model", student_task="text_classification")
    sections = YAML().load(recipe.read_text())
    sections["task"] = {"name": "text_classification"}
    sections["model"]["path"] = str(folder / "larger")
    forks.train(write_recipe(folder / "teacher.yaml", **sections), folder / "taught")
    return recipe


def _same_curve(ours: Any, theirs: Any) -> None:
    curve = ours.events("train")
    assert curve[-1]["loss"] != pytest.approx(curve[0]["loss"], abs=1e-4), "nothing trained"
    for one, other in zip(curve, theirs.events("train"), strict=True):
        assert other["sample_digest"] == one["sample_digest"]
        assert other["losses"] == pytest.approx(one["losses"], rel=10 * TOLERANCE)
        assert other["loss"] == pytest.approx(one["loss"], rel=TOLERANCE)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=5 * TOLERANCE)


def _said(run: Path, count: int) -> list[dict[str, Any]]:
    for folder in (run / FOLDER).iterdir():
        if folder.is_dir() and len(Examples(folder)) == count:
            return [*map(Examples(folder).__getitem__, range(count))]
    raise AssertionError("nothing was kept")


@pytest.mark.parametrize("adapter", [[], LORA], ids=["full", "lora"])
def test_every_strategy_and_a_resumed_run_draw_one_curve(
    answers: Path, tmp_path: Path, forks: Any, adapter: list[str]
) -> None:
    one = forks.train(answers, tmp_path / "one", "python", *adapter)
    for how in ("ddp", "zero2", "zero3"):  # each asks the teacher itself
        fresh = ["--data.cache_dir", str(tmp_path / f"cache-{how}")]
        _same_curve(one, forks.train(answers, tmp_path / how, how, *adapter, *fresh))
    forks.train(answers, tmp_path / "parts", "zero2", *adapter, "--train.stop_after", "2")
    (tmp_path / "parts").rename(tmp_path / "moved")
    elsewhere = ["--data.cache_dir", str(tmp_path / "elsewhere")]
    _same_curve(one, forks.train(answers, tmp_path / "moved", "python", *adapter, *elsewhere))
    (scores,) = one.events("eval")[-1:]
    assert scores["loss"] == pytest.approx((scores["loss/cross_entropy"] + scores["loss/distillation"]) / 2)
    assert scores["perplexity"] == pytest.approx(np.exp(scores["loss/cross_entropy"]))
    assert "teacher, of 18 examples" in one.stdout


def test_what_is_kept_is_what_plain_transformers_says(answers: Path, tmp_path: Path, forks: Any) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    forks.train(answers, tmp_path / "run", "python", "--train.max_steps", "1")
    teacher = answers.parent / "teacher"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(teacher), AutoTokenizer.from_pretrained(teacher)
    for row, said in zip(ANSWERS, _said(tmp_path / "run", 13), strict=True):
        turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
        start = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(turns, tokenize=False).removesuffix("\n")
        ids, skipped = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (whole, start))
        with torch.no_grad():
            probabilities = model(input_ids=torch.tensor([ids])).logits[0, :-1].softmax(-1)[len(skipped) - 1 :]
        best = probabilities.topk(7)
        kept = np.exp(np.frombuffer(said["teacher_logps"], np.float32).reshape(-1, 8))
        assert np.allclose(kept[:, :7], best.values, atol=1e-5)
        assert np.allclose(kept[:, 7], 1 - best.values.sum(1), atol=1e-5)
        numbers = np.frombuffer(said["teacher_ids"], np.int32).reshape(-1, 7).astype(np.int64)
        assert np.allclose(probabilities.gather(1, torch.from_numpy(numbers)), best.values, atol=1e-5)


def test_a_distilled_classifier_is_a_classifier(labels: Path, tmp_path: Path, forks: Any) -> None:
    from transformers import AutoModelForSequenceClassification

    from onecurve.model.trained import load_trained

    one = forks.train(labels, tmp_path / "one", "python", "--eval.predictions", "true")
    _same_curve(one, forks.train(labels, tmp_path / "zero3", "zero3", "--data.cache_dir", str(tmp_path / "cache")))
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "one" / "model")
    assert [plain.config.id2label[number] for number in range(2)] == ["high", "low"]
    trained = load_trained(tmp_path / "one")
    assert json.loads((tmp_path / "one" / "model" / "task.json").read_text())["name"] == "text_classification"
    assert type(trained.task).__module__ == "onecurve.tasks.text_classification"
    lines = [json.loads(line) for line in (tmp_path / "one" / "predictions-dev.jsonl").read_text().splitlines()]
    assert {line["label"] for line in lines} <= {"high", "low"} and len(lines) == 5


def test_another_teacher_or_its_labels_in_another_order_is_refused(labels: Path, tmp_path: Path, forks: Any) -> None:
    forks.train(labels, tmp_path / "run", "python", "--train.stop_after", "2")
    other = tmp_path / "other"
    shutil.copytree(labels.parent / "taught" / "model", other)
    config = json.loads((other / "config.json").read_text())
    config["id2label"] = {"0": "low", "1": "high"}
    (other / "config.json").write_text(json.dumps(config))
    refused = forks.launch(labels, tmp_path / "second", "python", "--task.teacher", str(other))
    assert refused.exit_code == 2 and "another order" in refused.stderr and "task.labels" in refused.stderr
