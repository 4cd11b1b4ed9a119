"""The texts of `eval.predictions` are those that were scored: none is written a second time."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.launching import write_recipe

COUNTED = '''
"""Sequence to sequence, where every text says how many were written before it."""

from onecurve.tasks.seq2seq_lm import Task as Seq2SeqLm


class Task(Seq2SeqLm):
    written = 0

    def generate(self, model, examples, reading, **options):
        texts = super().generate(model, examples, reading, **options)
        Task.written += len(texts)
        return [f"{text} {Task.written}" for text in texts]
'''
ROWS = [{"source": f"word {i}", "target": "the same"} for i in range(6)]


@pytest.fixture
def recipe(tmp_path: Path, tiny_t5: Path) -> Path:
    """Where nothing improves, the first step stays the best one."""
    (tmp_path / "counted.py").write_text(COUNTED)
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    files = {split: str(data) for split in ("train", "eval", "test")}
    return write_recipe(
        tmp_path / "recipe.yaml",
        output_dir="unused",
        task={"name": str(tmp_path / "counted.py") + ":Task", "generate": {"max_new_tokens": 4}},
        model={"path": str(tiny_t5)},
        data={**files, "cache_dir": str(tmp_path / "cache")},
        optim={"lr": 1e-15},
        train={"max_steps": 4, "global_batch_size": 4, "micro_batch_size": 4},
        eval={"every": 1, "best_metric": "loss", "predictions": True, "samples": 6, "micro_batch_size": 6},
        checkpoint={"every": 2, "keep": 9},
    )


def told(folder: Path, name: str) -> list[str]:
    return [json.loads(line)["text"] for line in (folder / f"predictions-{name}.jsonl").read_text().splitlines()]


def scored(event: dict[str, Any]) -> list[str]:
    return [sample["text"] for sample in event["samples"]]


def numbers(texts: list[str]) -> set[str]:
    return {text.rpartition(" ")[2] for text in texts}


@pytest.mark.slow
@pytest.mark.distributed
def test_what_is_written_was_scored(recipe: Path, forks: Any, tmp_path: Path) -> None:
    run = forks.train(recipe, tmp_path / "run", "python")
    ((end,), (test,)) = run.events("end"), run.events("test")
    events = {event["step"]: event for event in run.events("eval")}
    assert end["step"] == 1
    assert [numbers(scored(event)) for event in events.values()] == [{str(6 * step)} for step in events]
    assert told(run.output_dir, "dev") == scored(events[1])
    assert told(run.output_dir, "test") == scored(test)
    assert numbers(scored(test)) == {str(6 * 5)}


@pytest.mark.slow
@pytest.mark.distributed
def test_what_a_checkpoint_scored_is_written_anew(recipe: Path, forks: Any, tmp_path: Path) -> None:
    """Checkpoints keep no texts; by the same weights they are the same, but for their number."""
    forks.train(recipe, tmp_path / "run", "python", "--train.stop_after", "2")
    run = forks.train(recipe, tmp_path / "run", "python")
    assert run.events("end")[0]["step"] == 1
    first = scored(run.events("eval")[0])
    again = told(run.output_dir, "dev")
    assert (numbers(first), numbers(again)) == ({"6"}, {"24"})
    assert [text.rpartition(" ")[0] for text in again] == [text.rpartition(" ")[0] for text in first]
