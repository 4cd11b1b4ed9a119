"""Averages of weights: the same under every launch form, on across interruptions, held against torch's own."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from onecurve.checkpoint.reader import Windows
from tests.resume.conftest import recipes  # noqa: F401  a fixture
from tests.resume.curves import curve, partings, weights

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
KINDS = {
    "ema": (["--regularization.average_decay", "0.6"], get_ema_multi_avg_fn(0.6)),
    "swa": (["--regularization.average_start", "3", "--regularization.average_every", "2"], get_swa_multi_avg_fn()),
    "last": (["--regularization.average_count", "3"], None),
}
SAVED = ["--checkpoint.every", "1", "--checkpoint.keep", "9", "--eval.every", "2"]


class Weights(nn.Module):
    """A checkpoint's parameters, for torch to average."""

    def __init__(self, folder):
        super().__init__()
        with Windows(folder) as windows:
            for name, stored in windows.manifest.tensors.items():
                key, _, parameter = name.partition("/")
                if key == "param":
                    values = torch.cat([part for _, part in windows.read(name, 0, stored.numel)]).view(stored.shape)
                    self.register_parameter(parameter.replace(".", "/"), nn.Parameter(values))


def expected(run, kind):
    """Average the weights of the run's own checkpoints, one a step."""
    if kind == "last":
        return mean_of(run, range(6, 9))
    steps = {"ema": range(1, 9), "swa": range(3, 9, 2)}[kind]
    saved = [Weights(run.output_dir / "checkpoints" / f"step-{step:08}") for step in steps]
    average = AveragedModel(saved[0], multi_avg_fn=KINDS[kind][1])
    for each in saved:
        average.update_parameters(each)
    return {name.replace("/", "."): value.detach() for name, value in average.module.named_parameters()}


def mean_of(run, steps):
    """Average the weights of the run's own checkpoints of these steps in float64."""
    saved = [Weights(run.output_dir / "checkpoints" / f"step-{step:08}").state_dict() for step in steps]
    return {n.replace("/", "."): torch.stack([one[n].double() for one in saved]).mean(0).float() for n in saved[0]}


@pytest.mark.parametrize("kind", KINDS)
def test_averages_are_one_under_every_strategy_and_go_on_exactly(forks, recipes, tmp_path, kind):  # noqa: F811
    recipe, words = recipes["text_classification"], ["--regularization.average", kind, *KINDS[kind][0]]
    one = forks.train(recipe, tmp_path / "one", "python", *words, *SAVED)
    assert "average   " in one.stdout
    plain = forks.train(recipe, tmp_path / "plain", "python", *SAVED)
    assert curve(one) == curve(plain), "to average and score changed what was trained"
    exported = load_file(one.output_dir / "model" / "model.safetensors")
    for name, value in expected(one, kind).items():
        # the mean of the last is rounded once, as here; torch averages in float32, so there the last digit is free
        near = 0 if kind == "last" else 1e-7
        assert torch.allclose(exported[name], value, rtol=0, atol=near), name
        assert np.any(weights(plain)[name] != exported[name].numpy()) or not value.any(), f"{name} is not averaged"
    assert one.events("eval")[-1]["loss"] != plain.events("eval")[-1]["loss"]
    for how in ("ddp", "zero1", "zero2", "zero3"):
        whole = forks.train(recipe, tmp_path / how, how, *words, *SAVED)
        assert not [*partings(one, whole)], how
        losses = [[event["loss"] for event in run.events("eval")] for run in (one, whole)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
        forks.train(recipe, tmp_path / f"{how} again", how, *words, *SAVED, "--train.stop_after", "5")
        again = forks.train(recipe, tmp_path / f"{how} again", how, *words, *SAVED)
        assert not [*partings(whole, again, exactly=True)], how
    forks.train(recipe, tmp_path / "elsewhere", "zero3", *words, *SAVED, "--train.stop_after", "4")
    assert not [*partings(one, forks.train(recipe, tmp_path / "elsewhere", "python", *words, *SAVED))]


def test_the_best_average_is_kept(forks, recipes, tmp_path):  # noqa: F811
    words = ["--regularization.average", "ema", *KINDS["ema"][0], *SAVED, "--eval.every", "1"]
    words += ["--eval.best_metric", "loss", "--optim.lr", "0.08", "--optim.warmup_steps", "6"]
    run = forks.train(recipes["causal_lm"], tmp_path / "run", "zero2", *words)
    losses = {event["step"]: event["loss"] for event in run.events("eval")}
    best = min(losses, key=losses.get)
    assert best < 8, "nothing to choose"
    checkpoint = run.output_dir / "checkpoints" / f"step-{best:08}"
    with Windows(checkpoint) as windows:
        for name, value in load_file(run.output_dir / "model" / "model.safetensors").items():
            kept = torch.cat([part for _, part in windows.read(f"average-0/{name}", 0, value.numel())])
            assert torch.equal(kept.view(value.shape), value), name


BEST = ["--regularization.average", "best", "--regularization.average_count", "3", "--eval.best_metric", "loss"]
BEST += ["--checkpoint.every", "1", "--checkpoint.keep", "9", "--eval.every", "1"]
BEST += ["--optim.lr", "0.08", "--optim.warmup_steps", "6"]


def test_the_best_steps_are_averaged_under_every_strategy_and_across_interruptions(forks, recipes, tmp_path):  # noqa: F811
    recipe = recipes["causal_lm"]
    one = forks.train(recipe, tmp_path / "one", "python", *BEST)
    losses = {event["step"]: event["loss"] for event in one.events("eval")}
    steps = sorted(sorted(losses, key=losses.get)[:3])
    assert steps != [6, 7, 8], "the last ones would do"
    (told,) = one.events("average")
    assert told["averaged_steps"] == steps and told["step"] == max(steps)
    plain = forks.train(recipe, tmp_path / "plain", "python", *BEST[4:])
    assert curve(one) == curve(plain), "to average changed what was trained"
    for how in ("python", "ddp", "zero3"):
        whole = one if how == "python" else forks.train(recipe, tmp_path / how, how, *BEST)
        exported = load_file(whole.output_dir / "model" / "model.safetensors")
        for name, value in mean_of(whole, steps).items():
            assert torch.equal(exported[name], value), (how, name)
        (scored,) = whole.events("average")
        assert scored["averaged_steps"] == steps and scored["loss"] == pytest.approx(told["loss"], rel=1e-6)
        assert not [*partings(one, whole)], how
    for stop in (["--train.stop_after", "3"], ["--train.stop_after", "6"], []):
        again = forks.train(recipe, tmp_path / "again", "zero3", *BEST, *stop)
    assert not [*partings(whole, again, exactly=True)]
    card = (one.output_dir / "model" / "README.md").read_text()
    assert f"the mean of the weights of steps {', '.join(map(str, steps))}" in card
    assert f"| eval | loss | {told['loss']:.4f} |" in card
    forks.train(recipe, tmp_path / "elsewhere", "zero3", *BEST, "--train.stop_after", "4")
    assert not [*partings(one, forks.train(recipe, tmp_path / "elsewhere", "python", *BEST))]
