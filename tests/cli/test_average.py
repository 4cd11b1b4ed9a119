"""`onecurve checkpoint average`: held against sums made by hand, and read by plain transformers."""

from typing import Any

import torch
from safetensors.torch import load_file

from onecurve.cli import main
from tests.prediction.test_ensemble import classifier, logits

ASKED = ["--task", "text_classification"]
LABELS = ["down", "even", "up"]


def average(capsys: Any, *words: Any, code: int = 0) -> str:
    capsys.readouterr()
    assert main(["checkpoint", "average", *map(str, words), *ASKED]) == code, capsys.readouterr()
    out, said = capsys.readouterr()
    return said if code else out


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


def test_what_has_no_mean_is_refused(tmp_path, tiny_bert, capsys):
    a = classifier(tmp_path / "a", tiny_bert, 0, LABELS)
    other = classifier(tmp_path / "other", tiny_bert, 1, ["down", "even", "sideways"])
    (adapter := tmp_path / "adapter").mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    out = ["--output", tmp_path / "mean"]

    def refused(*words: Any) -> str:
        return average(capsys, *words, *out, code=2)

    assert "differ in config.json: id2label, label2id" in refused(a, other)
    assert "is an adapter, and the mean of adapters' factors is not the mean of their models" in refused(a, adapter)
    assert "a mean is of two models or more" in refused(a)
    assert "must be 2 numbers above 0; got '1,-1'" in refused(a, a, "--weights", "1,-1")
    assert "must be `examples` or numbers" in refused(a, a, "--weights", "most")
    assert "has no checkpoint, which would say how many examples" in refused(a, a, "--weights", "examples")
    assert "is neither a run with a model/ nor a model folder" in refused(a, tmp_path / "none")
    assert not (tmp_path / "mean").exists()
