"""`onecurve chat`: each answer is what plain transformers writes after the conversation so far."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from onecurve.cli import main
from onecurve.model.task_file import TaskFile
from onecurve.tasks.base import Survey
from tests.tiny_models import build_tiny_llama

NEW = 4
QUESTIONS = ["what is the answer?", "and the question?"]


def write_task(folder: Path, name: str = "sft", **settings: Any) -> Path:
    TaskFile(name, settings, Survey(), {}, 256).write(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(build_tiny_llama(tmp_path_factory.mktemp("chat") / "model", attention_dropout=0.0))


def expected(model: Path, questions: list[str], system: str | None = None) -> list[str]:
    """The answers of plain transformers, one after another."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, llama = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model).eval()
    messages = [{"role": "system", "content": system}] if system else []
    answers = []
    for question in questions:
        messages.append({"role": "user", "content": question})
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        written = llama.generate(input_ids=ids, max_new_tokens=NEW, do_sample=False)[0, ids.shape[1] :]
        answers.append(tokenizer.decode(written, skip_special_tokens=True))
        messages.append({"role": "assistant", "content": answers[-1]})
    return answers


def chat(monkeypatch: Any, capsys: Any, lines: list[str], *words: Any, code: int = 0) -> tuple[str, str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    assert main(["chat", *map(str, words)]) == code
    told = capsys.readouterr()
    return told.out, told.err


def test_each_answer_follows_the_conversation_so_far(model: Path, monkeypatch: Any, capsys: Any) -> None:
    answers = expected(model, QUESTIONS)
    assert answers[1] != expected(model, QUESTIONS[1:])[0]
    out, _ = chat(monkeypatch, capsys, [*QUESTIONS, "", "/exit", "more"], model, "--max_new_tokens", NEW)
    assert out == "".join(f"{answer}\n" for answer in answers)


def test_a_conversation_begins_anew_with_the_system_prompt(model: Path, monkeypatch: Any, capsys: Any) -> None:
    words = [model, "--max_new_tokens", NEW, "--system", "be short"]
    out, _ = chat(monkeypatch, capsys, [QUESTIONS[0], "/reset", QUESTIONS[1]], *words)
    assert out == "".join(f"{expected(model, [question], 'be short')[0]}\n" for question in QUESTIONS)


def test_tokens_are_drawn_above_temperature_zero(model: Path, monkeypatch: Any, capsys: Any) -> None:
    import torch

    answers = set()
    for seed in range(3):
        torch.manual_seed(seed)
        answers.add(chat(monkeypatch, capsys, QUESTIONS[:1], model, "--temperature", "2", "--max_new_tokens", 8)[0])
    assert len(answers) == 3


def test_on_a_terminal_answers_appear_as_they_are_written(model: Path, monkeypatch: Any, capsys: Any) -> None:
    lines = iter(QUESTIONS)

    def typed(prompt: str) -> str:
        if (line := next(lines, None)) is None:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", typed)
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", terminal)
    assert main(["chat", str(model), "--max_new_tokens", str(NEW)]) == 0
    told = capsys.readouterr()
    assert told.out == "".join(f"{answer}\n" for answer in expected(model, QUESTIONS))
    assert "/reset" in told.err


def test_a_question_that_leaves_no_room_is_told_and_not_kept(model: Path, monkeypatch: Any, capsys: Any) -> None:
    lines = ["the dog " * 200, QUESTIONS[0]]
    out, err = chat(monkeypatch, capsys, lines, model, "--max_new_tokens", NEW, code=1)
    assert out == f"{expected(model, QUESTIONS[:1])[0]}\n"
    assert err.startswith("onecurve chat: has ") and "/reset begins anew" in err


def test_a_language_model_without_task_json_converses_too(
    model: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    shutil.copytree(model, tmp_path / "plain")
    (tmp_path / "plain" / "task.json").unlink()
    out, _ = chat(monkeypatch, capsys, QUESTIONS[:1], tmp_path / "plain", "--max_new_tokens", NEW)
    assert out == f"{expected(model, QUESTIONS[:1])[0]}\n"


def test_mistakes_are_one_message(tmp_path: Path, tiny_bert: Path, monkeypatch: Any, capsys: Any) -> None:
    from onecurve.prediction import chat as module

    monkeypatch.setattr(module, "load_trained", lambda *_: pytest.fail("weights were loaded"))
    bare = write_task(build_tiny_llama(tmp_path / "bare", chat_template=None, weights=False))
    classifier = write_task(shutil.copytree(tiny_bert, tmp_path / "bert"), "text_classification")
    mistakes = {
        "was trained for text_classification, not for conversations. Ask it with `onecurve predict`.": [classifier],
        "has no chat template, so it reads single prompts only.": [bare],
        "--max_new_tokens: must be at least 1; got 0.": [bare, "--max_new_tokens", 0],
        "--temperature: must be 0 or more; got -1.0.": [bare, "--temperature", -1],
    }
    for message, words in mistakes.items():
        _, err = chat(monkeypatch, capsys, [], *words, code=2)
        assert message in err and err.count("\n") == 1
    monkeypatch.undo()
    _, err = chat(monkeypatch, capsys, [], tmp_path / "nothing", code=2)
    assert "is not a model folder" in err


@pytest.mark.slow
def test_an_adapter_that_was_trained_converses_in_a_process_of_its_own(tmp_path: Path, tiny_llama: Path) -> None:
    data = tmp_path / "chats.jsonl"
    turns = [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "the dog"}]
    data.write_text(f"{json.dumps({'messages': turns})}\n" * 4, encoding="utf-8")
    recipe = {
        "output_dir": str(tmp_path / "run"),
        "task": {"name": "sft"},
        "model": {"path": str(tiny_llama)},
        "data": {"train": str(data), "cache_dir": str(tmp_path / "cache")},
        "peft": {"method": "lora", "init_lora_weights": "gaussian"},
        "optim": {"lr": 1e-1, "schedule": "constant"},
        "train": {"max_steps": 30, "global_batch_size": 4, "micro_batch_size": 4},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, root / "train.py", path], check=True, capture_output=True)
    command = [sys.executable, "-m", "onecurve", "chat", tmp_path / "run" / "model", "--max_new_tokens", "16"]
    done = subprocess.run(command, input="what?\nwhat?\n", capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "the dog" and len(done.stdout.splitlines()) == 2
