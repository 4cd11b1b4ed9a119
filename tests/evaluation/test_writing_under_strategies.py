"""Texts that evaluations have the model write are the same under every launch form, and leave training as it is."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.launching import write_recipe
from tests.tiny_models import build_tiny_llama, build_tiny_t5

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

WORDS = "the quick brown fox jumps over a lazy dog and we were happy with this film".split()
PAIRS = [(" ".join(WORDS[i % 5 : i % 5 + 1 + i % 9]), " ".join(WORDS[i % 7 : i % 7 + 4])) for i in range(37)]
COLUMNS = {"sft": ("prompt", "response"), "seq2seq_lm": ("source", "target")}
SEARCHES = {
    "greedy": {"max_new_tokens": 12},
    "beams": {"max_new_tokens": 12, "num_beams": 3},
    "drawn": {"max_new_tokens": 12, "do_sample": True, "temperature": 0.9, "top_p": 0.95},
}


def recipe(folder: Path, task: str, generate: dict[str, Any] | None) -> Path:
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(dict(zip(COLUMNS[task], pair, strict=True))) + "\n" for pair in PAIRS))
    model = (build_tiny_llama if task == "sft" else build_tiny_t5)(folder / "model")
    _enlarge(model)
    asked = {"generate": generate, "metrics": ["chrf", "rouge", "exact_match"]} if generate else {}
    return write_recipe(
        folder / f"{'with' if generate else 'without'}.yaml",
        output_dir="unused",
        task={"name": task, **asked},
        model={"path": str(model)},
        data={"train": str(data), "eval": str(data), "cache_dir": str(folder / "cache")},
        optim={"lr": 1e-3},
        train={"max_steps": 4, "global_batch_size": 8, "micro_batch_size": 2},
        eval={"every": 2, "micro_batch_size": 8, **({"predictions": True, "samples": 2} if generate else {})},
    )


def _enlarge(folder: Path) -> None:
    """Upstream starts at 0.02, where every prompt is answered alike."""
    from safetensors.torch import load_file, save_file

    weights = {name: value * 4 for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def texts(finished: Any) -> list[str]:
    lines = (finished.output_dir / "predictions-dev.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines]


def scores(finished: Any) -> list[dict[str, Any]]:
    return [{k: v for k, v in e.items() if k not in ("time", "loss", "perplexity")} for e in finished.events("eval")]


def curve(finished: Any) -> list[tuple[float, float]]:
    return [(step["loss"], step["grad_norm"]) for step in finished.events("train")]


@pytest.mark.parametrize(
    ("task", "search"), [("sft", "greedy"), ("sft", "drawn"), ("seq2seq_lm", "greedy"), ("seq2seq_lm", "beams")]
)
def test_every_launch_form_writes_the_texts_of_one_process(tmp_path: Path, forks: Any, task: str, search: str) -> None:
    """With a small learning rate: that float noise in training stays noise is tested elsewhere."""
    written = recipe(tmp_path, task, SEARCHES[search])
    one = forks.train(written, tmp_path / "one", "python", "--optim.lr", "1e-6")
    assert len(texts(one)) == 37 and len(set(texts(one))) > 10, "texts that are all alike compare nothing"
    assert [len(entry["samples"]) for entry in scores(one)] == [2, 2]
    for how, size in (("ddp", "8"), ("zero2", "8"), ("zero3", "5")):
        changed = ["--optim.lr", "1e-6", "--eval.micro_batch_size", size]
        other = forks.train(written, tmp_path / how, how, *changed)
        assert texts(other) == texts(one), how
        assert scores(other) == scores(one), how


@pytest.mark.parametrize(
    ("task", "how"), [("sft", "python"), ("sft", "zero3"), ("seq2seq_lm", "ddp"), ("sft", "zero2")]
)
def test_training_is_bit_equal_to_training_without_it(tmp_path: Path, forks: Any, task: str, how: str) -> None:
    having = forks.train(recipe(tmp_path, task, SEARCHES["greedy"]), tmp_path / "with", how)
    lacking = forks.train(recipe(tmp_path, task, None), tmp_path / "without", how)
    assert curve(having) == curve(lacking) and len(curve(having)) == 4
    assert [e["loss"] for e in having.events("eval")] == [e["loss"] for e in lacking.events("eval")]
