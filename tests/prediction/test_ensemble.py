"""Several models asked together: the mean of what plain transformers computes of each."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from onecurve.cli import main
from onecurve.prediction.ensemble import mean_of
from onecurve.tasks.text_classification import Task as TextClassification
from onecurve.tasks.token_classification import Task as TokenClassification

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
    told = mean_of([one, other], TextClassification(TextClassification.Settings()))
    assert (told["label"], told["truncated"]) == (["y"], True)
    assert told["probabilities"] == pytest.approx({"x": 0.45, "y": 0.55})
    assert mean_of([one, {"error": "no text"}], TextClassification(TextClassification.Settings())) == {
        "error": "no text"
    }


SENTENCES = [["the", "lazy", "dogs", "jump"], ["quick", "fox"], ["no"], ["over", "it", "the", "brown", "dog"]]
TAGS = ["O", "B-A", "I-A"]


def tagger(folder: Path, source: Path, seed: int, labels: list[str]) -> Path:
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    torch.manual_seed(seed)
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: n for n, name in enumerate(labels)}}
    model = AutoModelForTokenClassification.from_pretrained(source, **names)
    with torch.no_grad():
        model.classifier.weight.mul_(30)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def of_words(folder: Path) -> list[torch.Tensor]:
    """The probabilities of each word's tags, in the order of TAGS, by plain transformers."""
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    model, tokenizer = (kind.from_pretrained(folder) for kind in (AutoModelForTokenClassification, AutoTokenizer))
    columns = [model.config.label2id[tag] for tag in TAGS]
    found = []
    for words in SENTENCES:
        read = tokenizer(" ".join(words), return_tensors="pt")
        places = [read.char_to_token(len(" ".join([*words[:place], ""]))) for place in range(len(words))]
        with torch.no_grad():
            found.append(model.eval()(**read).logits[0].softmax(-1)[places][:, columns])
    return found


def test_taggers_answer_with_the_mean_of_their_probabilities_of_each_word(tmp_path, tiny_bert, capsys):
    a = tagger(tmp_path / "a", tiny_bert, 0, TAGS)
    b = tagger(tmp_path / "b", tiny_bert, 1, [TAGS[2], TAGS[0], TAGS[1]])
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"tokens": words}) + "\n" for words in [*SENTENCES, []]))
    alone = [[[TAGS[n] for n in one.argmax(-1)] for one in of_words(folder)] for folder in (a, b)]
    together = [[TAGS[n] for n in ((x + y) / 2).argmax(-1)] for x, y in zip(of_words(a), of_words(b), strict=True)]
    assert together not in alone and alone[0] != alone[1]
    assert main(["predict", str(a), str(b), "--task", "token_classification", "--json", "--input", str(rows)]) == 1
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["tags"] for one in told[:-1]] == together
    assert "tokens is empty" in told[-1]["error"]
    for one, words in zip(told[:-1], SENTENCES, strict=True):
        assert all(span["text"] == " ".join(words[span["start"] : span["end"]]) for span in one["entities"])
    assert any(one["entities"] for one in told[:-1])
    other = tagger(tmp_path / "other", tiny_bert, 1, ["O", "B-A", "B-C"])
    assert main(["predict", str(a), str(other), "--task", "token_classification", "the dog"]) == 2
    assert "do not know the same labels: B-C, I-A" in capsys.readouterr().err


def test_a_word_that_one_model_has_not_read_is_tagged_by_the_others():
    sure, unsure = {"O": 0.1, "B-A": 0.9, "I-A": 0.0}, {"O": 0.6, "B-A": 0.4, "I-A": 0.0}
    votes = [
        {"words": ["x", "y", "z"], "labels": TAGS, "probabilities": {0: sure, 1: sure}},
        {"words": ["x", "y", "z"], "labels": TAGS, "probabilities": {0: unsure}, "truncated": True},
    ]
    told = mean_of(votes, TokenClassification(None))
    assert (told["tags"], told["truncated"]) == (["B-A", "B-A", "O"], True)
    assert [span["text"] for span in told["entities"]] == ["x", "y"]


def test_models_that_cannot_answer_together_are_refused(tmp_path, tiny_bert, tiny_llama, capsys):
    a = classifier(tmp_path / "a", tiny_bert, 0, ["down", "up"])
    other = classifier(tmp_path / "other", tiny_bert, 1, ["down", "sideways"])
    number = classifier(tmp_path / "number", tiny_bert, 1, [], problem_type="regression")
    assert "do not know the same labels: sideways, up" in ask(capsys, a, other, "the dog", code=2)
    assert "were trained for different tasks" in ask(capsys, a, number, "the dog", code=2)
    assert main(["predict", str(tiny_llama), str(tiny_llama), "the dog", "--task", "causal_lm"]) == 2
    assert "gives no probabilities of labels and no number" in capsys.readouterr().err
