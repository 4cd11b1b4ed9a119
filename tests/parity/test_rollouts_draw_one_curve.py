"""A run that learns from its own completions: replayed under every launch form and cut it draws one curve."""

import json

import pytest

from tests.launching import write_recipe
from tests.tiny_models import build_tiny_llama

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

TOLERANCE = 2e-6
STEPS = 4
WORDS = ("profit", "loss", "rises", "falls", "the bank", "shares", "in Oslo", "after a long and quiet year")
REWARDS = """
def length(completions, wanted):
    return [-abs(len(text) - size) / 10 for text, size in zip(completions, wanted)]

def letters(prompts, completions):
    return [sum(text.count(letter) for letter in 'aeiou') / 5 for text in completions]
"""
LORA = ["--peft.method", "lora", "--peft.target_modules", "all-linear", "--peft.lora_dropout", "0.1"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Prompts of different lengths, two reward functions, dropout, a short last step."""
    folder = tmp_path_factory.mktemp("rollouts")
    rows = [{"prompt": " ".join(WORDS[n % 8] for n in range(i, 2 * i + 1)), "wanted": 3 * i} for i in range(7)]
    data = folder / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mine.py").write_text(REWARDS)
    return write_recipe(
        folder / "recipe.yaml",
        output_dir="unused",
        seed=3,
        task={
            "name": "grpo",
            "rewards": ["mine.py:length", "mine.py:letters"],
            "reward_weights": [1.0, 0.5],
            "completions": 4,
            "max_completion_length": 8,
        },
        model={"path": str(build_tiny_llama(folder / "llama", initializer_range=0.1))},
        data={"train": str(data), "eval": str(data), "cache_dir": str(folder / "cache")},
        optim={"lr": 1e-3, "weight_decay": 0.1, "max_grad_norm": 0.3},
        train={"max_steps": STEPS, "global_batch_size": 12, "micro_batch_size": 4},
        eval={"every": 2},
        checkpoint={"every": 1, "keep": 9},
    )


@pytest.fixture(scope="module")
def one_process(recipe, forks, tmp_path_factory):
    return forks.train(recipe, tmp_path_factory.mktemp("one"), "python")


FACTS = ("step", "sample_digest", "num_items", "num_tokens", "reward", "reward_std", "completions/mean_length")


def same_curve(ours, theirs):
    ours_train, theirs_train = ours.events("train"), theirs.events("train")
    assert len(ours_train) == STEPS and len({step["grad_norm"] for step in ours_train}) == STEPS, "nothing trained"
    assert all(step["reward_std"] > 0 for step in ours_train)
    for one, other in zip(ours_train, theirs_train, strict=True):
        assert [one[key] for key in FACTS] == [other[key] for key in FACTS]
        assert other["loss"] == pytest.approx(one["loss"], rel=TOLERANCE, abs=1e-8)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=5 * TOLERANCE)


def replayed(run):
    return ["--task.replay", str(run.output_dir)]


@pytest.mark.parametrize("how", ["ddp", "zero2", "zero3"])
def test_what_one_process_drew_draws_its_curve_on_ranks(how, recipe, one_process, forks, tmp_path):
    same_curve(one_process, forks.train(recipe, tmp_path, how, *replayed(one_process)))


@pytest.mark.parametrize("how", ["ddp", "zero3"])
def test_ranks_draw_completions_and_one_process_their_curve(how, recipe, forks, tmp_path):
    several = ["--task.steps_per_generation", "2", "--task.loss_type", "dapo", "--task.beta", "0.05", *LORA]
    ranks = forks.train(recipe, tmp_path / "ranks", how, *several)
    same_curve(ranks, forks.train(recipe, tmp_path / "one", "python", *several, *replayed(ranks)))
    assert any(step["losses"]["clip_ratio/region_mean"] for step in ranks.events("train")), "nothing was clipped"
    assert ranks.events("train")[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert ranks.events("train")[-1]["kl"] > 1e-6, "the base is the reference"
    assert ranks.events("eval")[-1]["reward"] != ranks.events("eval")[0]["reward"]


def test_a_cut_changes_nothing(recipe, forks, tmp_path):
    still = ["--model.path", str(build_tiny_llama(tmp_path / "m", attention_dropout=0.0, initializer_range=0.1))]
    whole = forks.train(recipe, tmp_path / "whole", "python", *still, "--train.micro_batch_size", "12")
    cut = ["--train.micro_batch_size", "3", "--train.group_by_length", "true", *replayed(whole)]
    same_curve(whole, forks.train(recipe, tmp_path / "cut", "ddp", *still, *cut))


@pytest.mark.parametrize(("how", "together"), [("python", 3), ("ddp", 1), ("zero3", 3)])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(how, together, recipe, forks, tmp_path):
    several = ["--task.steps_per_generation", str(together)]
    whole = forks.train(recipe, tmp_path / "whole", how, *several)
    forks.train(recipe, tmp_path / "parts", how, *several, "--train.stop_after", "2")
    parts = forks.train(recipe, tmp_path / "parts", how, *several)
    exact = (*FACTS, "loss", "grad_norm")
    for one, other in zip(whole.events("train"), parts.events("train"), strict=True):
        assert [one[key] for key in exact] == [other[key] for key in exact]
    for step in range(1, STEPS + 1):
        name = f"rollouts/step-{step:08d}.jsonl"
        assert (whole.output_dir / name).read_bytes() == (parts.output_dir / name).read_bytes()
