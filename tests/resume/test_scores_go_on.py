"""Reward models and rankers: a run that was interrupted is the uninterrupted one to the bit, under each launch form."""

import json
from typing import Any

import pytest

from tests.launching import write_recipe
from tests.resume.curves import curve, partings

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

WORDS = ("profit", "loss", "rises", "falls", "the bank", "shares", "in Oslo", "after a long and quiet year")


def _text(*numbers: int) -> str:
    return " ".join(WORDS[number % len(WORDS)] for number in numbers)


def _pair(i: int) -> dict[str, Any]:
    answers = {"chosen": _text(*range(i, i + 1 + i % 5)), "rejected": f"{_text(i + 2, i)} {i}"}
    return {"prompt": f"what of {_text(i)}?", **answers} | ({"margin": 0.1 * (i % 4)} if i % 3 else {})


def _list(i: int) -> dict[str, Any]:
    documents = [f"{_text(*range(i, i + j + 1))} {i + j}" for j in range(2 + i % 3)]
    return {"query": _text(i, i + 1), "docs": documents, "labels": [(i + j) % 3 for j in range(len(documents))]}


TASKS: dict[str, Any] = {
    "reward": (_pair, {"center_rewards_coefficient": 0.01}, "tiny_llama"),
    "text_ranking": (_list, {"loss": "lambda"}, "tiny_bert"),
}


@pytest.mark.parametrize("how", ["python", "zero2"])
@pytest.mark.parametrize("task", sorted(TASKS))
def test_a_run_that_goes_on_is_the_uninterrupted_one(
    task: str, how: str, request: pytest.FixtureRequest, forks: Any, tmp_path: Any
) -> None:
    row, settings, model = TASKS[task]
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(row(i)) + "\n" for i in range(27)))
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        output_dir="unused",
        seed=3,
        task={"name": task, **settings},
        model={"path": str(request.getfixturevalue(model))},
        data={"train": str(data), "test": str(data), "cache_dir": str(tmp_path / "cache")},
        optim={"lr": 1e-3, "weight_decay": 0.1, "max_grad_norm": 0.3, "schedule": "cosine", "warmup_steps": 2},
        # 27 examples in steps of 8: the run is stopped amid its second pass
        train={"max_steps": 8, "global_batch_size": 8, "micro_batch_size": 2},
    )
    one = forks.train(recipe, tmp_path / "one", how)
    assert len({loss for _, _, loss, _ in curve(one)}) == 8, "nothing trained"
    forks.train(recipe, tmp_path / "parts", how, "--train.stop_after", "5")
    parts = forks.train(recipe, tmp_path / "parts", how)
    assert parts.events("resume")[0]["step"] == 5
    assert not [*partings(one, parts, exactly=True)]

    def scores(run: Any) -> dict[str, Any]:
        (event,) = run.events("test")
        return {name: value for name, value in event.items() if name not in ("time", "seconds")}

    assert scores(parts) == scores(one)
