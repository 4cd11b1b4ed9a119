"""The works that trainers are compared on: a random model, rows of real lengths, and the order to read them in."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML


@dataclass(frozen=True)
class Work:
    """The same examples in the same batches for everybody."""

    name: str
    task: str
    global_batch_size: int
    micro_batch_size: int
    num_steps: int
    lr: float


WORKS = {
    work.name: work
    for work in (
        Work("classification", "text_classification", 32, 32, 24, 1e-4),
        Work("sft", "sft", 16, 8, 24, 1e-3),
        Work("pretraining", "causal_lm", 16, 8, 24, 1e-3),
    )
}
LORA = {"method": "lora", "r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}
_NUM_WORDS = 8000


def prepare(work: Work, method: str, folder: Path) -> Path:
    """Write model, data, recipe and, for the peers, `examples.jsonl` and `work.json`; return the recipe.

    `examples.jsonl` has the encoded examples in the order in which onecurve's plan reads them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    tokenizer = _tokenizer()
    _write_model(work, tokenizer, folder / "model")
    rows = list(_rows(work, rng))
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = _write_recipe(work, method, folder)
    _write_examples(recipe, work, folder)
    facts = {"method": method, "lora": LORA, "model": str(folder / "model"), "examples": str(folder / "examples.jsonl")}
    (folder / "work.json").write_text(json.dumps(work.__dict__ | facts))
    return recipe


def _rows(work: Work, rng: np.random.Generator) -> Any:
    count = work.global_batch_size * work.num_steps
    # Lengths in words, fitted by eye to published statistics: SST-2's sentences have a mean of 19, GSM8K's problems one
    # of 46 with answers of twice that, and plain text fills every block
    for number in range(count):
        if work.task == "text_classification":
            length = int(np.clip(rng.gamma(4.2, 4.6), 2, 64))
            yield {"text": _words(rng, length), "label": ("bad", "good")[number % 2]}
        elif work.task == "sft":
            prompt, response = (int(np.clip(rng.lognormal(mean, 0.45), 12, 400)) for mean in (4.0, 4.7))
            yield {"prompt": _words(rng, prompt), "response": _words(rng, response)}
        else:
            yield {"text": _words(rng, 254)}


def _words(rng: np.random.Generator, count: int) -> str:
    # Zipf-like, as words are
    return " ".join(f"w{min(int(number), _NUM_WORDS - 1)}" for number in rng.zipf(1.3, count))


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    names = [*special, *(f"w{number}" for number in range(_NUM_WORDS))]
    backend = Tokenizer(models.WordLevel({name: place for place, name in enumerate(names)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", bos_token="[CLS]", eos_token="[SEP]", unk_token="[UNK]",
        cls_token="[CLS]", sep_token="[SEP]", model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def _write_model(work: Work, tokenizer: Any, folder: Path) -> None:
    import torch
    from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    if work.task == "text_classification":  # the shape of all-MiniLM-L6-v2
        config: Any = BertConfig(
            vocab_size=len(tokenizer), hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
            intermediate_size=1536, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=2,
            id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1}, pad_token_id=0,
        )  # fmt: skip
        model: Any = BertForSequenceClassification(config)
    else:
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=256, intermediate_size=1024, num_hidden_layers=4,
            num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=1024, tie_word_embeddings=False,
            pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _write_recipe(work: Work, method: str, folder: Path) -> Path:
    recipe = {
        "output_dir": str(folder / "run"),
        "task": {"name": work.task},
        "model": {"path": str(folder / "model")},
        "data": {
            "train": str(folder / "data.jsonl"),
            "cache_dir": str(folder / "cache"),
            "max_length": 256 if work.task == "causal_lm" else 512,
        },
        "optim": {"lr": work.lr, "schedule": "constant", "max_grad_norm": 1.0},
        "train": {
            "max_steps": work.num_steps,
            "global_batch_size": work.global_batch_size,
            "micro_batch_size": work.micro_batch_size,
        },
    }
    if method == "lora":
        recipe["peft"] = LORA
    path = folder / "recipe.yaml"
    with open(path, "w") as file:
        YAML().dump(recipe, file)
    return path


def _write_examples(recipe_path: Path, work: Work, folder: Path) -> None:
    from onecurve.data import load_data, plan_run
    from onecurve.preflight import preflight
    from onecurve.tokenizer import Reading

    checked = preflight([str(recipe_path), "--train.resume", "never"])
    recipe = checked.recipe
    reading = Reading(recipe.model, recipe.data.max_length, 0)
    data = load_data(recipe.data, checked.task, lambda: reading.tokenizer, lambda _: reading.max_length)
    plan = plan_run(data.splits, recipe)
    with open(folder / "examples.jsonl", "w") as file:
        for step in plan.steps(1, work.num_steps):
            for example in data.train.take(step.sample_ids):
                file.write(json.dumps(example) + "\n")
