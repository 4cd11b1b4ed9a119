"""The works that trainers are compared on: a random model, rows of real lengths, and the order to read them in.

`python benchmarks/work.py '{"work": ..., "method": ...}' FOLDER` writes one (see `prepare`), in a process of its own:
the one that measures stays light.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
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
    num_eval: int
    """Examples of the dev split, scored once, after the last step."""
    max_length: int = 512
    """Tokens; plain text is cut into blocks of so many."""
    length: int | None = None
    """Words of every example, where they do not vary."""
    model: dict[str, int] = field(default_factory=dict)
    """What of the model's config is not this file's."""
    device: str = "cpu"
    precision: str = "no"
    """Of matrix products: no (float32) or bf16."""


WORKS = {
    work.name: work
    for work in (
        Work("classification", "text_classification", 32, 32, 14, 1e-4, 256),
        Work("sft", "sft", 8, 4, 14, 1e-3, 24),
        Work("pretraining", "causal_lm", 8, 4, 14, 1e-3, 24, max_length=256),
    )
}
CELLS = [(work, method) for work in WORKS for method in ("full", "lora") if (work, method) != ("pretraining", "lora")]
"""Works and what of the model is trained in them."""
LORA = {"method": "lora", "r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
"""The shape of all-MiniLM-L6-v2."""
LLAMA = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
}
_NUM_WORDS = 8000


def prepare_apart(work: Work, method: str, folder: Path) -> Path:
    """Do what `prepare` does in another process, and return the recipe."""
    description = json.dumps({"work": asdict(work), "method": method})
    subprocess.run([sys.executable, __file__, description, str(folder)], check=True, stdout=subprocess.DEVNULL)
    return folder / "recipe.yaml"


def prepare(work: Work, method: str, folder: Path) -> None:
    """Write model, data, `recipe.yaml` and, for the peers, `work.json`, the encoded examples and the first adapter.

    `train.jsonl` has the encoded examples in the order in which onecurve's plan reads them, `adapter` the adapter that
    onecurve draws: everybody trains the same numbers from the first step on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    tokenizer = _tokenizer()
    _write_model(work, tokenizer, folder / "model")
    for name, count in (("train", work.global_batch_size * work.num_steps), ("eval", work.num_eval)):
        rows = "".join(json.dumps(row) + "\n" for row in _rows(work, rng, count))
        (folder / f"{name}-rows.jsonl").write_text(rows)
    _write_recipe(work, method, folder)
    _write_start(work, method, folder)
    places = {name: str(folder / name) for name in ("model", "adapter")}
    places |= {name: str(folder / f"{name}.jsonl") for name in ("train", "eval")}
    (folder / "work.json").write_text(json.dumps(asdict(work) | places | {"method": method, "lora": LORA}))


def _rows(work: Work, rng: np.random.Generator, count: int) -> Iterator[dict[str, str]]:
    # Lengths in words, fitted by eye to published statistics: SST-2's sentences have a mean of 19, GSM8K's problems one
    # of 46 with answers of twice that, and plain text fills every block
    for number in range(count):
        if work.task == "text_classification":
            length = int(np.clip(rng.gamma(4.2, 4.6), 2, 64))
            yield {"text": _words(rng, length), "label": ("bad", "good")[number % 2]}
        elif work.task == "sft":
            lengths = [int(np.clip(rng.lognormal(mean, 0.45), 12, 400)) for mean in (3.8, 4.5)]
            prompt, response = lengths if work.length is None else [work.length // 3, work.length - work.length // 3]
            yield {"prompt": _words(rng, prompt), "response": _words(rng, response)}
        else:
            yield {"text": _words(rng, work.max_length - 2)}


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
        cls_token="[CLS]", sep_token="[SEP]", model_max_length=1 << 17,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def _write_model(work: Work, tokenizer: Any, folder: Path) -> None:
    import torch
    from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    if work.task == "text_classification":
        no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        labels = {"num_labels": 2, "id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
        shape = {"vocab_size": len(tokenizer)} | MINILM | work.model
        config: Any = BertConfig(pad_token_id=0, **shape, **no_dropout, **labels)
        kind: Any = BertForSequenceClassification
    else:
        shape = {"vocab_size": len(tokenizer), "tie_word_embeddings": False} | LLAMA | work.model
        config = LlamaConfig(pad_token_id=0, bos_token_id=1, eos_token_id=2, **shape)
        kind = LlamaForCausalLM
    # A large model is drawn where that is quick, and kept as small as it is published
    with torch.device(work.device):
        model = kind(config).to(torch.float32 if work.precision == "no" else torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _write_recipe(work: Work, method: str, folder: Path) -> None:
    recipe = {
        "output_dir": str(folder / "run"),
        "task": {"name": work.task},
        "model": {"path": str(folder / "model")},
        "data": {
            "train": str(folder / "train-rows.jsonl"),
            "eval": str(folder / "eval-rows.jsonl"),
            "cache_dir": str(folder / "cache"),
            "max_length": work.max_length,
        },
        "optim": {"lr": work.lr, "schedule": "constant", "max_grad_norm": 1.0},
        "train": {
            "max_steps": work.num_steps,
            "global_batch_size": work.global_batch_size,
            "micro_batch_size": work.micro_batch_size,
            "mixed_precision": work.precision,
        },
    }
    if method == "lora":
        recipe["peft"] = LORA
    with open(folder / "recipe.yaml", "w") as file:
        YAML().dump(recipe, file)


def _write_start(work: Work, method: str, folder: Path) -> None:
    from onecurve.data import load_data, plan_run
    from onecurve.model.loading import load_model
    from onecurve.model.reading import Reading
    from onecurve.preflight import preflight

    checked = preflight([str(folder / "recipe.yaml"), "--train.resume", "never"])
    recipe, task = checked.recipe, checked.task
    reading = Reading(recipe.model, recipe.data.max_length, task.auto_processor)
    data = load_data(recipe.data, task, reading, recipe.seed)
    plan = plan_run(data.splits, recipe)
    with open(folder / "train.jsonl", "w") as file:
        for step in plan.steps(1, work.num_steps):
            for example in data.train.take(step.sample_ids):
                file.write(json.dumps(example) + "\n")
    assert data.eval
    examples = data.eval.take(range(len(data.eval.num_items)))
    (folder / "eval.jsonl").write_text("".join(json.dumps(example) + "\n" for example in examples))
    if method == "lora":
        load_model(recipe, task, reading.config, data.survey, work.precision).save_pretrained(folder / "adapter")


if __name__ == "__main__":
    described = json.loads(sys.argv[1])
    prepare(Work(**described["work"]), described["method"], Path(sys.argv[2]))
