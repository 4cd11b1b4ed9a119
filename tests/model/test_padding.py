"""How a batch is padded changes nothing: neither what is computed, nor what is trained, nor what is saved."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from onecurve.config import Recipe
from onecurve.errors import ConfigError
from onecurve.model.loading import load_model
from onecurve.model.reading import Reading, set_padding
from onecurve.tasks import load_task
from tests.launching import write_recipe
from tests.tiny_models import build_tiny_bert, build_tiny_llama

ROWS = [
    {"text": "the dog " * (1 + 7 * i % 12) + ("<|end|>" if i % 3 == 0 else ""), "label": "ab"[i % 2]} for i in range(48)
]


def edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def configured(folder: Path, **config: Any) -> Path:
    edit(folder / "config.json", **config)
    return folder


def without_padding(folder: Path, **config: Any) -> Path:
    """Take the tokenizer's padding token away, so that its end token pads, and have config.json say something else."""
    edit(folder / "tokenizer_config.json", pad_token=None)
    assert AutoTokenizer.from_pretrained(folder).pad_token is None
    return configured(folder, **config)


def gpt2(folder: Path) -> Path:
    build_tiny_llama(folder, weights=False)
    vocabulary = len(AutoTokenizer.from_pretrained(folder))
    torch.manual_seed(0)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, **shape, bos_token_id=1, eos_token_id=2)).save_pretrained(folder)
    return folder


MODELS = {
    "config.json pads with another token": lambda folder: without_padding(build_tiny_llama(folder), pad_token_id=0),
    "config.json pads with none": lambda folder: without_padding(build_tiny_llama(folder), pad_token_id=None),
    "config.json counts from the end": lambda folder: without_padding(build_tiny_llama(folder), pad_token_id=-1),
    "the tokenizer knows better": lambda folder: configured(build_tiny_llama(folder), pad_token_id=5),
    "gpt2, whose config.json knows none": lambda folder: without_padding(gpt2(folder)),
    "an encoder": lambda folder: build_tiny_bert(folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
}


def prepare(folder: Path, task: str = "text_classification", **model: Any) -> tuple[Recipe, Any, Reading]:
    recipe = Recipe.model_validate(
        {
            "output_dir": "unused",
            "task": {"name": task},
            "model": {"path": str(folder), **model},
            "data": {"train": "unused"},
            "train": {"max_steps": 1, "global_batch_size": 48, "micro_batch_size": 2},
        }
    )
    task = load_task(recipe.task)
    return recipe, task, Reading(recipe.model, None, task.auto_processor)


@pytest.mark.parametrize("kind", MODELS)
def test_loss_and_gradients_are_the_same_under_every_cut(tmp_path: Path, kind: str) -> None:
    recipe, task, reading = prepare(MODELS[kind](tmp_path))
    survey = task.survey(ROWS)
    model = load_model(recipe, task, reading.config, survey, "no").double().eval()
    examples = [e for row in ROWS for e in task.encode(row, survey, reading, truncate=True)]
    assert len({len(example["input_ids"]) for example in examples}) > 5, "nothing to pad"
    found = []
    for size in (1, 3, 16):
        model.zero_grad()
        total = 0.0
        for start in range(0, len(examples), size):
            batch = task.collate(examples[start : start + size], reading)
            loss = task.loss_sum(task.forward(model, batch), batch)
            loss.backward()
            total += loss.item()
        found.append((total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}))
    (loss, gradients), *others = found
    assert any(gradient.any() for gradient in gradients.values())
    for other, theirs in others:
        assert other == pytest.approx(loss, rel=1e-6)
        for name, gradient in gradients.items():
            torch.testing.assert_close(theirs[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def roberta(folder: Path, pad: int, **config: Any) -> Path:
    """Write a RoBERTa that was trained with a padding id of its own, and a tokenizer that pads with 0."""
    build_tiny_bert(folder, weights=False)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    vocabulary = len(AutoTokenizer.from_pretrained(folder))
    RobertaForMaskedLM(RobertaConfig(vocab_size=vocabulary, pad_token_id=pad, **shape)).save_pretrained(folder)
    return folder


def test_weights_that_count_positions_from_the_padding_id_keep_theirs(tmp_path: Path) -> None:
    recipe, task, reading = prepare(roberta(tmp_path, pad=3))
    assert reading.tokenizer.pad_token_id == 0
    model = load_model(recipe, task, reading.config, task.survey(ROWS), "no").eval()
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).base_model.eval()
    batch = reading.tokenizer(["the dog", "the dog and the dog " * 3], padding=True, return_tensors="pt")
    with torch.no_grad():
        ours = model.base_model(**batch).last_hidden_state
        for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
            alone = theirs(batch["input_ids"][row : row + 1, :length]).last_hidden_state
            torch.testing.assert_close(ours[row : row + 1, :length], alone, rtol=1e-4, atol=1e-5)
    assert prepare(tmp_path, init="random")[2].config.pad_token_id == 0, "drawn weights follow the tokenizer"


@pytest.mark.parametrize(("pad", "vocabulary"), [(7, 7), (9, 7), (None, 7)])
def test_a_token_that_the_model_does_not_know_cannot_pad(pad: int | None, vocabulary: int) -> None:
    class Tokenizer:
        pad_token_id, pad_token = pad, "<pad>"

    with pytest.raises(ConfigError, match=r"model.tokenizer: (pads with '<pad>', which is|has no padding token)"):
        set_padding(BertConfig(vocab_size=vocabulary, pad_token_id=0), Tokenizer(), pretrained=True)


@pytest.mark.parametrize("init", ["pretrained", "random"])
def test_an_end_token_that_pads_is_learnt_from_as_where_it_does_not(tmp_path: Path, init: str) -> None:
    without_padding(build_tiny_llama(tmp_path), pad_token_id=None)
    recipe, task, reading = prepare(tmp_path, "causal_lm", init=init)
    model = load_model(recipe, task, reading.config, task.survey([]), "no").eval()
    assert model.config.pad_token_id == model.generation_config.pad_token_id == 2
    assert model.model.embed_tokens.weight[2].std() > 0.01, "transformers starts it at zero"
    plain = LlamaForCausalLM(AutoConfig.from_pretrained(tmp_path)).eval()
    assert plain.config.pad_token_id is None
    plain.load_state_dict(model.state_dict())
    ids = torch.tensor([[5, 6, 2, 7, 8, 2, 9]])
    for each in (model, plain):
        each(input_ids=ids, labels=ids).loss.backward()
    ours, theirs = model.model.embed_tokens.weight.grad, plain.model.embed_tokens.weight.grad
    assert ours[2].any()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
def test_a_run_starts_the_same_with_any_micro_batch_and_saves_what_it_padded_with(forks: Any, tmp_path: Path) -> None:
    model = without_padding(build_tiny_llama(tmp_path / "llama", attention_dropout=0.0), pad_token_id=0)
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        output_dir="unused",
        task={"name": "text_classification"},
        model={"path": str(model)},
        data={"train": str(tmp_path / "data.jsonl"), "cache_dir": str(tmp_path / "cache")},
        train={"max_steps": 2, "global_batch_size": 48},
    )
    runs = [
        forks.train(recipe, tmp_path / f"{size}", "python", "--train.micro_batch_size", f"{size}") for size in (1, 16)
    ]
    losses = [[event["loss"] for event in run.events("train")] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    saved = runs[0].output_dir / "model"
    assert AutoConfig.from_pretrained(saved).pad_token_id == AutoTokenizer.from_pretrained(saved).pad_token_id == 2
    classifier = AutoModelForSequenceClassification.from_pretrained(saved).eval()
    inputs = AutoTokenizer.from_pretrained(saved)([row["text"] for row in ROWS[:4]], padding=True, return_tensors="pt")
    with torch.no_grad():
        together = classifier(**inputs).logits
        for row, length in enumerate(inputs["attention_mask"].sum(1).tolist()):
            alone = classifier(inputs["input_ids"][row : row + 1, :length]).logits[0]
            torch.testing.assert_close(together[row], alone, rtol=1e-4, atol=1e-6)
