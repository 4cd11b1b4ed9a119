"""`onecurve checkpoint average`: held against sums made by hand, and read by plain transformers and PEFT."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from onecurve.cli import main
from tests.prediction.test_ensemble import TEXTS, classifier, logits

ASKED = ["--task", "text_classification"]
LABELS = ["down", "even", "up"]


def average(capsys: Any, *words: Any, code: int = 0) -> str:
    capsys.readouterr()
    assert main(["checkpoint", "average", *map(str, words), *ASKED]) == code, capsys.readouterr()
    out, said = capsys.readouterr()
    return said if code else out


def adapter(folder: Path, base: Path, seed: int, **fields: Any) -> Path:
    """A LoRA adapter as plain PEFT saves it, with factors that matter."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(seed)
    settings = {"r": 2, "lora_alpha": 6, "target_modules": ["query", "value"], "init_lora_weights": False, **fields}
    model = get_peft_model(
        AutoModelForSequenceClassification.from_pretrained(base), LoraConfig(task_type="SEQ_CLS", **settings)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3 * ("lora_A" not in name or seed < 9))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def deltas(folder: Path) -> dict[str, torch.Tensor]:
    """What an adapter adds to each weight, and what it brings whole."""
    told, tensors = (
        json.loads((folder / "adapter_config.json").read_text()),
        load_file(folder / "adapter_model.safetensors"),
    )
    scale = told["lora_alpha"] / (told["r"] ** 0.5 if told["use_rslora"] else told["r"])
    found = {name: value for name, value in tensors.items() if "lora" not in name}
    for name, value in tensors.items():
        if "lora_A" in name:
            found[name.replace("lora_A", "delta")] = scale * tensors[name.replace("lora_A", "lora_B")] @ value
    return found


def plainly(folder: Path) -> torch.Tensor:
    """What a fresh process without onecurve says with an adapter's folder."""
    code = f"""
import sys, json, torch
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoTokenizer
model = AutoPeftModelForSequenceClassification.from_pretrained({str(folder)!r}, num_labels=3).eval()
tokenizer = AutoTokenizer.from_pretrained({str(folder)!r})
with torch.no_grad():
    told = [model(**tokenizer(text, return_tensors="pt")).logits[0].tolist() for text in {TEXTS!r}]
assert "onecurve" not in sys.modules
print(json.dumps(told))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    return torch.tensor(json.loads(done.stdout.splitlines()[-1]))


def test_whole_models_are_averaged_by_weight(tmp_path, tiny_bert, capsys):
    a, b = (classifier(tmp_path / str(seed), tiny_bert, seed, LABELS) for seed in (0, 1))
    told = average(capsys, a, b, "--output", tmp_path / "mean", "--weights", "3,1")
    assert "mean of the weights; 0.75 x" in told and "not checked, because no run says it: the base of" in told
    mean, one, other = (load_file(folder / "model.safetensors") for folder in (tmp_path / "mean", a, b))
    assert mean.keys() == one.keys()
    for name, value in mean.items():
        assert torch.allclose(value, 0.75 * one[name] + 0.25 * other[name], atol=1e-7), name
    assert not torch.equal(mean["classifier.weight"], one["classifier.weight"])
    assert torch.isfinite(logits(tmp_path / "mean")).all()
    assert (tmp_path / "mean" / "README.md").read_text().startswith("# Mean of 2 models")


FIELDS = {"lora": {}, "rslora": {"use_rslora": True}, "tokens": {"trainable_token_indices": [3, 5]}}


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_adapters_side_by_side_are_the_mean_of_their_models(tmp_path, tiny_bert, capsys, fields):
    base = classifier(tmp_path / "base", tiny_bert, 5, LABELS)
    parts = [adapter(tmp_path / str(seed), base, seed, **fields) for seed in (0, 1, 2)]
    told = average(capsys, *parts, "--output", tmp_path / "mean", "--weights", "1,1,2")
    assert "the rank grows from 2 to 6" in told
    mean, each = deltas(tmp_path / "mean"), [deltas(part) for part in parts]
    naive = [load_file(part / "adapter_model.safetensors") for part in parts]
    for name, value in mean.items():
        expected = sum(w * one[name] for w, one in zip((0.25, 0.25, 0.5), each, strict=True))
        assert torch.allclose(value, expected, atol=1e-5), name
        if ".delta." in name:  # planted: the mean of A and of B is another model
            down, up = (sum(w * n[name.replace("delta", f)] for w, n in zip((0.25, 0.25, 0.5), naive, strict=True))
                        for f in ("lora_A", "lora_B"))  # fmt: skip
            scale = 6 / 2**0.5 if "use_rslora" in fields else 3
            assert not torch.allclose(up @ down, expected / scale, atol=1e-2)
    if not fields:
        assert torch.isfinite(plainly(tmp_path / "mean")).all()


def test_adapters_that_share_a_keep_their_rank(tmp_path, tiny_bert, capsys):
    base = classifier(tmp_path / "base", tiny_bert, 5, LABELS)
    a = adapter(tmp_path / "a", base, 0)
    b = adapter(tmp_path / "b", base, 1)
    tensors = load_file(b / "adapter_model.safetensors")
    shared = {name: value for name, value in load_file(a / "adapter_model.safetensors").items() if "lora_A" in name}
    from safetensors.torch import save_file

    save_file(tensors | shared, b / "adapter_model.safetensors", metadata={"format": "pt"})
    assert "all adapters share A" in average(capsys, a, b, "--output", tmp_path / "mean")
    assert json.loads((tmp_path / "mean" / "adapter_config.json").read_text())["r"] == 2
    for name, value in deltas(tmp_path / "mean").items():
        assert torch.allclose(value, (deltas(a)[name] + deltas(b)[name]) / 2, atol=1e-6), name


def merged(folder: Path, base: Path) -> dict[str, torch.Tensor]:
    """The weights of an adapter's model, as plain PEFT merges them."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(base)
    return PeftModel.from_pretrained(model, folder).merge_and_unload().state_dict()


@pytest.mark.parametrize("kind", ["pissa", "olora"])
def test_adapters_that_take_from_their_base_are_averaged_at_their_rank_alone(tmp_path, tiny_bert, capsys, kind):
    base = classifier(tmp_path / "base", tiny_bert, 5, LABELS)
    apart = [adapter(tmp_path / f"apart-{seed}", base, seed, init_lora_weights=kind) for seed in (0, 1)]
    said = average(capsys, *apart, "--output", tmp_path / "mean", code=2)
    assert (
        f"the mean of lora adapters with init_lora_weights {kind}, each with an A of its own, is not the mean" in said
    )
    assert "Merge each into its base (onecurve checkpoint convert ADAPTER FOLDER --merge)" in said
    assert not (tmp_path / "mean").exists()
    shared = [adapter(tmp_path / f"shared-{seed}", base, seed, init_lora_weights=kind) for seed in (9, 10)]
    assert "all adapters share A" in average(capsys, *shared, "--output", tmp_path / "mean")
    one, other = (merged(folder, base) for folder in shared)
    for name, value in merged(tmp_path / "mean", base).items():
        assert torch.allclose(value, (one[name] + other[name]) / 2, atol=1e-5), name


@pytest.mark.parametrize(
    "field",
    [{"rank_pattern": {"query": 2}}, {"alpha_pattern": {"query": 6}}, {"target_parameters": ["experts.down_proj"]}],
    ids=lambda field: next(iter(field)),
)
def test_adapters_whose_ranks_lie_otherwise_are_not_put_side_by_side(tmp_path, tiny_bert, capsys, field):
    base = classifier(tmp_path / "base", tiny_bert, 5, LABELS)
    parts = [adapter(tmp_path / str(seed), base, seed) for seed in (0, 1)]
    for part in parts:
        told = json.loads((part / "adapter_config.json").read_text())
        (part / "adapter_config.json").write_text(json.dumps(told | field))
    said = average(capsys, *parts, "--output", tmp_path / "mean", code=2)
    assert f"the mean of lora adapters with {next(iter(field))} is not the mean of their models" in said


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
def test_bases_are_compared_whatever_the_order(tmp_path, tiny_bert, capsys, order):
    def run(name: str, **model: Any) -> Path:
        classifier(tmp_path / name / "model", tiny_bert, len(name), LABELS)
        told = {"model": {"path": "one", "init": "pretrained", "revision": None, **model}}
        (tmp_path / name / "config.yaml").write_text(json.dumps(told))
        return tmp_path / name

    unknown = classifier(tmp_path / "unknown", tiny_bert, 0, LABELS)
    same, other, drawn = run("same"), run("other", path="two"), run("drawn", init="random")
    out = ["--output", tmp_path / "mean"]

    def given(*three: Path) -> list[Path]:
        return [three[place] for place in order]

    assert "come from different bases: " in average(capsys, *given(unknown, same, other), *out, code=2)
    said = average(capsys, *given(unknown, same, drawn), *out, code=2)
    assert "'drawn' was trained from weights drawn at random" in said.replace(f"{tmp_path}/", "")
    assert not (tmp_path / "mean").exists()
    assert "not checked, because no run says it: the base of" in average(capsys, *given(unknown, same, same), *out)


def test_what_has_no_mean_is_refused(tmp_path, tiny_bert, capsys):
    a = classifier(tmp_path / "a", tiny_bert, 0, LABELS)
    other = classifier(tmp_path / "other", tiny_bert, 1, ["down", "even", "sideways"])
    lora, dora = adapter(tmp_path / "lora", a, 0), adapter(tmp_path / "dora", a, 1, use_dora=True)
    elsewhere = adapter(tmp_path / "elsewhere", other, 0)
    out = ["--output", tmp_path / "mean"]

    def refused(*words: Any) -> str:
        return average(capsys, *words, *out, code=2)

    assert "differ in config.json: id2label, label2id" in refused(a, other)
    assert "are an adapter and a whole model" in refused(a, lora)
    assert "come from different bases" in refused(lora, elsewhere)
    assert "the mean of lora adapters with use_dora is not the mean of their models" in refused(dora, dora)
    assert "a mean is of two models or more" in refused(a)
    assert "must be 2 numbers above 0; got '1,-1'" in refused(a, a, "--weights", "1,-1")
    assert "must be `examples` or numbers" in refused(a, a, "--weights", "most")
    assert "has no checkpoint, which would say how many examples" in refused(a, a, "--weights", "examples")
    assert "is neither a run with a model/ nor a model folder" in refused(a, tmp_path / "none")
    assert not (tmp_path / "mean").exists()
