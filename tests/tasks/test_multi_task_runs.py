import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from tests.launching import launch, train, write_recipe

HEADS = {
    "topic": {"name": "text_classification"},
    "sentiment": {"name": "text_classification", "weight": 0.5},
}
READ = """
import sys
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
folder, adapter = sys.argv[1], sys.argv[2] != "full"
if sys.argv[2] == "bottleneck":
    import onecurve.adapters.bottleneck  # as the card says
for head in ("topic", "sentiment"):
    there, kind = f"{folder}/{head}", AutoModelForSequenceClassification
    tokenizer = AutoTokenizer.from_pretrained(there)
    if adapter:
        from peft import PeftModel
        model = PeftModel.from_pretrained(kind.from_pretrained(f"{there}/base"), there)
    else:
        model = kind.from_pretrained(there)
    with torch.no_grad():
        said = model.eval()(**tokenizer("the quick dog", return_tensors="pt")).logits.softmax(-1)[0]
    labels = model.config.id2label
    print(head, *(f"{labels[i]}={float(p):.5f}" for i, p in enumerate(said)))
"""


def _recipe(folder: Path, model: Path, **sections: Any) -> Path:
    pairs = [(a, b) for _ in range(6) for a in ("quick", "lazy", "brown") for b in ("happy", "not")]
    rows = [
        {"text": f"the {a} dog {b}", "topic": a if i % 3 else None, "sentiment": b if i % 4 else None}
        for i, (a, b) in enumerate(pairs)
    ]
    lines = (json.dumps(row) for row in rows if row["topic"] or row["sentiment"])
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return write_recipe(
        folder / "recipe.yaml",
        output_dir=str(folder / "run"),
        task={"name": "multi_task", "heads": HEADS},
        model={"path": str(model)},
        data={"train": str(folder / "rows.jsonl"), "cache_dir": str(folder / "cache")},
        optim={"lr": 1e-3},
        train={"max_steps": 5, "global_batch_size": 8, "micro_batch_size": 2, "mixed_precision": "no"},
        checkpoint={"every": 2},
        **sections,
    )


def _curve(run: Any) -> list[float]:
    return [value for one in run.events("train") for value in (one["loss"], one["grad_norm"], *one["losses"].values())]


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("how", ["single", "ddp", "zero2", "zero3"])
def test_two_heads_draw_one_curve_and_resume_on_it(forks: Any, tmp_path: Path, tiny_bert: Path, how: str) -> None:
    recipe = _recipe(tmp_path, tiny_bert)
    alone = forks.train(recipe, tmp_path / "python", "python")
    assert sorted(alone.events("train")[0]["losses"]) == ["sentiment", "topic"]
    whole = forks.train(recipe, tmp_path / "whole", how)
    assert _curve(whole) == pytest.approx(_curve(alone), rel=1e-5)
    forks.train(recipe, tmp_path / "parts", how, "--train.stop_after", "2")
    parts = forks.train(recipe, tmp_path / "parts", how)
    assert [event["step"] for event in parts.events("resume")] == [2]
    assert _curve(parts) == _curve(whole)


LINEAR = {"target_modules": "all-linear"}
METHODS = {
    "full": {},
    "lora": {"method": "lora", **LINEAR},
    "dora": {"method": "lora", "use_dora": True, **LINEAR},
    "ia3": {"method": "ia3"},
    "loha": {"method": "loha", **LINEAR},
    "bottleneck": {"method": "bottleneck"},
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_each_head_is_a_model_that_others_load_and_says_what_all_say(
    tmp_path: Path, tiny_llama: Path, method: str
) -> None:
    peft = {"peft": METHODS[method]} if method != "full" else {}
    run = train(_recipe(tmp_path, tiny_llama, **peft), tmp_path / "run")
    model = run.output_dir / "model"
    if method == "full":
        assert (model / "topic" / "model-00001-of-00002.safetensors").stat().st_nlink == 3
    code = ["-m", "onecurve", "predict", str(model), "--json", "the quick dog"]
    asked = subprocess.run([sys.executable, *code], capture_output=True, text=True, check=True)
    told = json.loads(asked.stdout.splitlines()[-1])
    read = subprocess.run([sys.executable, "-c", READ, str(model), method], capture_output=True, text=True, check=True)
    for line in read.stdout.splitlines():
        head, *pairs = line.split()
        found = {label: float(p) for label, p in (pair.split("=") for pair in pairs)}
        assert found == pytest.approx(told[head]["probabilities"], abs=2e-5)
    assert "| [topic](topic/README.md) |" in (model / "README.md").read_text()


@pytest.mark.slow
def test_heads_that_a_model_has_are_trained_with_an_adapter_too(tmp_path: Path, tiny_bert: Path) -> None:
    run = train(_recipe(tmp_path, tiny_bert), tmp_path / "heads")
    again = _recipe(tmp_path, run.output_dir / "model", peft=METHODS["lora"])
    model = train(again, tmp_path / "run").output_dir / "model"
    before = AutoModelForSequenceClassification.from_pretrained(run.output_dir / "model" / "topic").classifier.weight
    kept = load_file(model / "topic" / "adapter_model.safetensors")
    (trained,) = (value for key, value in kept.items() if key.endswith("classifier.weight"))
    assert trained.shape == before.shape and not torch.equal(trained, before)


@pytest.mark.slow
def test_virtual_tokens_are_refused(tmp_path: Path, tiny_bert: Path) -> None:
    recipe = _recipe(tmp_path, tiny_bert, peft={"method": "prefix_tuning", "num_virtual_tokens": 2})
    run = launch(recipe, tmp_path / "run", "python")
    assert run.exit_code == 2
    assert "virtual tokens need a task type of PEFT, and this task has none" in run.stderr
