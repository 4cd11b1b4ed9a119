"""The README's own commands train models of five families, and plain transformers and PEFT load what they saved."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launching import ROOT, environment, write_recipe
from tests.zoo.building import build
from tests.zoo.families import CAUSAL, CLASSIFIERS

README = (ROOT / "README.md").read_text(encoding="utf-8")
DECODERS = ["Llama", "Qwen 3", "Gemma 3, text", "GPT-2"]
TEXTS = [f"{who} {does}." for who in ("the fox", "the dog", "a cat") for does in ("jumps", "sleeps", "eats")]
LORA = ["--peft.method", "lora", "--peft.target_modules", "all-linear"]
FRESH = """
import json, sys
import peft, torch, transformers
from torch.nn.functional import cross_entropy

folder, kind, rows = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
readers = [getattr(transformers, f"AutoModelFor{kind}")]
if sys.argv[4] == "lora":
    readers.append(getattr(peft, f"AutoPeftModelFor{kind}"))
losses = []
for reader in readers:
    model, total, count = reader.from_pretrained(folder).eval(), 0.0, 0
    for text, label in rows:
        ids = tokenizer(text)["input_ids"]
        if label is None:
            ids = torch.tensor([[*ids, tokenizer.eos_token_id]])
            logits, targets = model(input_ids=ids).logits[0, :-1], ids[0, 1:]
        else:
            logits, targets = model(input_ids=torch.tensor([ids])).logits, torch.tensor([model.config.label2id[label]])
        total, count = total + cross_entropy(logits, targets, reduction="sum").item(), count + len(targets)
    losses.append(total / count)
    if kind == "CausalLM":
        asked = tokenizer("the fox", return_tensors="pt", return_token_type_ids=False)
        assert model.generate(**asked, max_new_tokens=3).shape[1] > asked["input_ids"].shape[1]
assert not any(name.startswith("onecurve") for name in sys.modules)
print(json.dumps(losses))
"""


def commands(holding: str) -> list[str]:
    """The commands of the README's first block that holds a word, each on one line."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    block = next(block for language, block in blocks if not language and holding in block)
    return block.replace("\\\n", "").strip().splitlines()


LAUNCHES = commands("torchrun")


def run(folder: Path, line: str) -> str:
    """Run a line in a folder that looks like the checkout, as somebody would paste it there."""
    for name in ("train.py", "recipes", "accelerate_configs", "ds_configs"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    line = line.replace("accelerate launch", "accelerate launch --main_process_port 0")  # tests share a machine
    found = environment()
    if line.startswith("torchrun"):
        found |= {"PET_RDZV_BACKEND": "c10d", "PET_RDZV_ENDPOINT": "localhost:0"}
    found["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(line, shell=True, cwd=folder, env=found, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, line + done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def last_loss(folder: Path) -> float:
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if event["event"] == "train"]
    assert len(losses) == 4 and losses[0] != losses[-1]
    return next(event["loss"] for event in reversed(events) if event["event"] == "eval")


def read_elsewhere(folder: Path, kind: str, rows: list[tuple[str, str | None]], how: str) -> list[float]:
    words = [sys.executable, "-c", FRESH, folder, kind, json.dumps(rows), how]
    done = subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_launch_form_has_a_command_in_the_readme() -> None:
    assert [line.partition(" ")[0] for line in LAUNCHES] == ["python", "onecurve", "accelerate", "torchrun"]
    assert all("RECIPE.yaml" in line for line in LAUNCHES)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("how", ["full", "lora"])
@pytest.mark.parametrize("family", DECODERS)
def test_a_launch_command_trains_a_language_model_that_loads_elsewhere(tmp_path: Path, family: str, how: str) -> None:
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    recipe = write_recipe(
        tmp_path / "mine.yaml",
        output_dir="run",
        task={"name": "causal_lm"},
        model={"path": str(build(CAUSAL[family], tmp_path / "base"))},
        data={"train": "texts.jsonl", "eval": "texts.jsonl", "cache_dir": "cache"},
        optim={"lr": 1e-2},
        train={"max_steps": 4, "global_batch_size": 4, "micro_batch_size": 2},
    )
    number = DECODERS.index(family) + 2 * (how == "lora")  # every form trains in full and with LoRA
    line = LAUNCHES[number % len(LAUNCHES)].replace("RECIPE.yaml", recipe.name)
    line = re.sub(r"(--num_processes|--nproc_per_node) \d+", r"\1 2", line)
    run(tmp_path, line + (" " + shlex.join(LORA) if how == "lora" else ""))
    expected = last_loss(tmp_path / "run")
    for loss in read_elsewhere(tmp_path / "run" / "model", "CausalLM", [(text, None) for text in TEXTS], how):
        assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["full", "lora"])
def test_the_first_commands_train_a_classifier_and_ask_it(tmp_path: Path, how: str) -> None:
    rows = [(text, "animal" if "dog" in text or "cat" in text else "fox") for text in TEXTS]
    for name in ("train.csv", "dev.csv"):
        (tmp_path / name).write_text("review,rating\n" + "".join(f"{text},{label}\n" for text, label in rows))
    train, predict = commands("--data.train train.csv")
    base = build(CLASSIFIERS["BERT"], tmp_path / "base")
    small = ["--train.epochs", "null", "--train.max_steps", "4", "--model.path", str(base), "--optim.lr", "1e-2"]
    small += ["--train.global_batch_size", "4", "--train.micro_batch_size", "4", "--data.cache_dir", "cache"]
    run(tmp_path, f"{train} {shlex.join([*small, '--eval.best_metric', 'null', *(LORA if how == 'lora' else [])])}")
    assert any(label in run(tmp_path, predict) for label in ("animal", "fox"))
    folder = tmp_path / "runs" / "text_classification"
    expected = last_loss(folder)
    for loss in read_elsewhere(folder / "model", "SequenceClassification", rows, how):
        assert loss == pytest.approx(expected, rel=1e-5)
