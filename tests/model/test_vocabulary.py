"""Tokens that a recipe adds: their rows are named, start alike everywhere, are trained, and are saved."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from onecurve.config import Recipe
from onecurve.errors import ConfigError
from onecurve.model.loading import load_model
from onecurve.model.reading import Reading
from onecurve.strategies import check_strategy
from onecurve.tasks import load_task
from tests.tiny_models import build_tiny_llama
from tests.zoo.trial import Trial, write_trial

NEW = ["<tool>", "</tool>", "<think>"]


def recipe_for(folder: Path, peft: dict[str, Any] | None = None, seed: int = 0, **model: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "output_dir": "unused",
            "seed": seed,
            "task": {"name": "causal_lm"},
            "model": {"path": str(folder), **model},
            "data": {"train": "unused"},
            "train": {"max_steps": 1},
            **({"peft": peft} if peft else {}),
        }
    )


def load(folder: Path, **settings: Any) -> tuple[Any, Reading]:
    recipe = recipe_for(folder, **settings)
    task = load_task(recipe.task)
    reading = Reading(recipe.model, None, task.auto_processor)
    return load_model(recipe, task, reading.config, task.survey([]), "no"), reading


def spare(folder: Path, rows: int) -> Path:
    """Give a model more rows than its tokenizer has tokens, as most have."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(model.config.vocab_size + rows, mean_resizing=False)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rows", [0, 2, 8])
def test_new_rows_start_at_the_mean_of_the_old_ones(tmp_path: Path, rows: int, tied: bool) -> None:
    folder = spare(build_tiny_llama(tmp_path, tie_word_embeddings=tied), rows)
    plain, known = AutoModelForCausalLM.from_pretrained(folder), len(AutoTokenizer.from_pretrained(folder))
    model, reading = load(folder, add_tokens=NEW)
    ids = reading.tokenizer.convert_tokens_to_ids(NEW)
    assert ids == [known, known + 1, known + 2]
    assert model.config.vocab_size == len(model.get_input_embeddings().weight) == max(known + rows, known + 3)
    grown = "" if rows == 8 else f", vocabulary {known + rows} -> {known + 3}"
    assert (
        model.new_weights == f"3 tokens{grown} (<tool> {ids[0]}, </tool> {ids[1]}, <think> {ids[2]}): start at the mean"
    )
    for table, before in zip(*(map(rows_of, (model, plain))), strict=True):
        torch.testing.assert_close(table[:known], before[:known], rtol=0, atol=0)
        old = before[[number for number in range(known + rows) if number not in ids]]
        assert (table[ids] - old.mean(0)).abs().max() < 0.1 * old.std()
        assert not torch.equal(table[ids[0]], table[ids[1]])
    again, _ = load(folder, add_tokens=NEW)
    other, _ = load(folder, add_tokens=NEW, seed=1)
    assert all(torch.equal(*pair) for pair in zip(rows_of(model), rows_of(again), strict=True))
    assert not torch.equal(rows_of(model)[0], rows_of(other)[0])


def rows_of(model: Any) -> list[torch.Tensor]:
    return [model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach()]


def test_a_token_without_a_row_is_named_and_one_with_a_row_is_not_new(tmp_path: Path) -> None:
    folder = build_tiny_llama(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    size = len(tokenizer)
    tokenizer.add_tokens(["<image>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(
        ConfigError, match=rf"has {size + 1} tokens, but the model knows {size}: <image> .*add_tokens: \[<i"
    ):
        load(folder)
    model, _ = load(folder, add_tokens=["<image>"])
    assert len(model.get_input_embeddings().weight) == size + 1
    with pytest.raises(ConfigError, match=r"model.add_tokens: the model knows <\|end\|> already"):
        load(folder, add_tokens=["<image>", "<|end|>"])
    with pytest.raises(ConfigError, match=r"model.add_tokens: ia3 cannot train the embeddings of new tokens"):
        load(folder, peft={"method": "ia3"}, add_tokens=["<image>"])


LORA = {"method": "lora"}


@pytest.mark.parametrize(
    ("peft", "rows", "tied"),
    [
        (LORA, 0, False),
        (LORA, 8, True),
        *(
            pytest.param(peft, rows, tied, marks=pytest.mark.slow)
            for peft, rows, tied in [(None, 0, False), (None, 8, True), (LORA, 0, True), (LORA, 8, False)]
        ),
    ],
)
def test_new_tokens_draw_one_curve_and_are_saved(tmp_path: Path, peft: Any, rows: int, tied: bool) -> None:
    base = spare(build_tiny_llama(tmp_path / "base", tie_word_embeddings=tied), rows)
    recipe = write_trial(
        tmp_path,
        base,
        "causal_lm",
        peft,
        model={"add_tokens": NEW},
        rows=[{"text": "the dog <tool> sleeps </tool> in the sun " * (1 + number)} for number in range(6)],
    )
    trial = Trial(recipe)
    outcome = trial.run()
    saved = trial.checked.directory.model
    tokenizer, size = AutoTokenizer.from_pretrained(saved), len(AutoTokenizer.from_pretrained(base))
    assert tokenizer.convert_tokens_to_ids(NEW) == [size, size + 1, size + 2]
    assert AutoConfig.from_pretrained(saved).vocab_size == max(size + rows, size + 3)
    if peft:
        told = json.loads((saved / "adapter_config.json").read_text())["trainable_token_indices"]
        assert list(told.values()) == [[size, size + 1, size + 2]] * (1 if tied else 2)
        assert (saved / "base" / "model.safetensors").is_symlink() == (rows == 8), "a copy only where it must be"
    assert not outcome.remarks


def test_zero_3_cannot_train_single_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(tmp_path / "zero.json"))
    for stage, peft in ((2, LORA), (3, None), (3, LORA)):
        (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": {"stage": stage}}))
        recipe = recipe_for(tmp_path, peft, add_tokens=NEW)
        if (stage, peft) == (3, LORA):
            with pytest.raises(ConfigError, match=r"model.add_tokens: .* ZeRO-3 has partitioned. Use ZeRO-2 or DDP"):
                check_strategy(recipe)
        else:
            check_strategy(recipe)
