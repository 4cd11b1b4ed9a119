"""Several models asked together: the mean of what plain transformers computes of each."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from onecurve.cli import main
from onecurve.prediction.ensemble import mean_of

TEXTS = ["the dog", "a lazy fox jumps over it", "no"]


def classifier(folder: Path, source: Path, seed: int, labels: list[str], **told: Any) -> Path:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(seed)
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: n for n, name in enumerate(labels)}}
    names = names if labels else {"num_labels": 1}
    model = AutoModelForSequenceClassification.from_pretrained(source, **names, **told)
    with torch.no_grad():
        model.classifier.weight.mul_(30)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def logits(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, tokenizer = (kind.from_pretrained(folder) for kind in (AutoModelForSequenceClassification, AutoTokenizer))
    with torch.no_grad():
        return torch.cat([model.eval()(**tokenizer(text, return_tensors="pt")).logits for text in TEXTS])


def ask(capsys: Any, *words: Any, code: int = 0) -> Any:
    assert main(["predict", *map(str, words), "--task", "text_classification", "--json"]) == code
    out, said = capsys.readouterr()
    return said if code else [json.loads(line) for line in out.splitlines()]


def test_classifiers_answer_with_the_mean_of_their_probabilities(tmp_path, tiny_bert, capsys):
    a = classifier(tmp_path / "a", tiny_bert, 0, ["down", "even", "up"])
    b = classifier(tmp_path / "b", tiny_bert, 1, ["up", "down", "even"])  # in another order
    expected = (logits(a).softmax(-1) + logits(b).softmax(-1)[:, [1, 2, 0]]) / 2
    assert (logits(a).softmax(-1) - expected).abs().max() > 0.05, "nothing to average"
    told = ask(capsys, a, b, *TEXTS)
    for one, row in zip(told, expected, strict=True):
        assert list(one["probabilities"].values()) == pytest.approx(row.tolist(), abs=1e-5)
        assert one["label"] == ["down", "even", "up"][int(row.argmax())]
        assert one["probability"] == pytest.approx(float(row.max()), abs=1e-5)


def test_regressions_answer_with_the_mean_of_their_numbers(tmp_path, tiny_bert, capsys):
    a, b = (classifier(tmp_path / str(seed), tiny_bert, seed, [], problem_type="regression") for seed in (0, 1))
    told = ask(capsys, a, b, *TEXTS)
    expected = ((logits(a) + logits(b)) / 2).flatten().tolist()
    assert [one["value"] for one in told] == pytest.approx(expected, abs=1e-5)


def test_several_labels_are_those_of_which_the_mean_is_above_a_half():
    one = {"label": ["x"], "probabilities": {"x": 0.6, "y": 0.4}}
    other = {"label": ["y"], "probabilities": {"x": 0.3, "y": 0.7}, "truncated": True}
    told = mean_of([one, other])
    assert (told["label"], told["truncated"]) == (["y"], True)
    assert told["probabilities"] == pytest.approx({"x": 0.45, "y": 0.55})
    assert mean_of([one, {"error": "no text"}]) == {"error": "no text"}


def test_models_that_cannot_answer_together_are_refused(tmp_path, tiny_bert, tiny_llama, capsys):
    a = classifier(tmp_path / "a", tiny_bert, 0, ["down", "up"])
    other = classifier(tmp_path / "other", tiny_bert, 1, ["down", "sideways"])
    number = classifier(tmp_path / "number", tiny_bert, 1, [], problem_type="regression")
    assert "do not know the same labels: sideways, up" in ask(capsys, a, other, "the dog", code=2)
    assert "were trained for different tasks" in ask(capsys, a, number, "the dog", code=2)
    assert main(["predict", str(tiny_llama), str(tiny_llama), "the dog", "--task", "causal_lm"]) == 2
    assert "gives no probabilities of labels and no number" in capsys.readouterr().err
