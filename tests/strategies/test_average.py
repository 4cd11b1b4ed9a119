"""Averages of weights, held against torch's own, and put in the model's place and back."""

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from onecurve.config import Recipe, RegularizationSection
from onecurve.errors import ConfigError
from onecurve.model.batch_norm import settle_batch_norm
from onecurve.strategies.average import Average, describe_average
from onecurve.strategies.plain import Plain
from tests.config.test_effects import RECIPE


def prepared(dtype: torch.dtype = torch.float32, **keys: Any) -> tuple[Plain, Average]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)).to(dtype)
    settle_batch_norm(model, "train")
    strategy = Plain(Accelerator(cpu=True), "no", 0.0)
    strategy.prepare(model, torch.optim.SGD(model.parameters(), 0.1), 1)
    return strategy, Average(strategy, RegularizationSection(**keys))


def train(strategy: Plain, steps: range, reference: Any = None, counts: Any = ()) -> None:
    for step in steps:
        torch.manual_seed(step)
        strategy.model(torch.randn(8, 5)).pow(2).sum().backward()
        strategy.update()
        strategy.model[1].running_mean.add_(step)  # which a step's end moves
        strategy.model[1].running_var.mul_(1 + 1 / step)
        strategy.after_update(step)
        if reference is not None and step in counts:
            reference.update_parameters(strategy.model)


@pytest.mark.parametrize(
    ("kind", "function"),
    [("ema", get_ema_multi_avg_fn(0.7)), ("swa", get_swa_multi_avg_fn())],
)
def test_it_is_torch_s_own_average_bit_for_bit(kind, function):
    keys = {"average_decay": 0.7} if kind == "ema" else {}
    strategy, average = prepared(average=kind, average_start=3, average_every=2, **keys)
    reference = AveragedModel(strategy.model, multi_avg_fn=function, use_buffers=kind == "ema")  # swa's divides counts
    train(strategy, range(1, 12), reference, counts=(3, 5, 7, 9, 11))
    trained = {name: value.clone() for name, value in strategy.model.state_dict().items()}
    with average.in_place():
        names = ["0.weight", "1.weight", *(["1.running_mean", "1.running_var"] if kind == "ema" else [])]
        for name in names:
            value = reference.module.state_dict()[name]
            assert torch.equal(strategy.model.state_dict()[name], value), name
            assert not torch.equal(trained[name], value), "nothing was averaged"
    assert all(torch.equal(strategy.model.state_dict()[name], value) for name, value in trained.items())


def test_the_last_are_averaged_and_no_more():
    strategy, average = prepared(average="last", average_count=3)
    seen = []
    for step in range(1, 6):
        train(strategy, range(step, step + 1))
        seen.append(strategy.model[0].weight.detach().clone())
    average.put()
    assert torch.allclose(strategy.model[0].weight, torch.stack(seen[-3:]).mean(0), rtol=0, atol=1e-7)
    assert len(average.kept) == 3


def test_moves_smaller_than_bfloat16_s_digits_are_not_lost():
    strategy, average = prepared(torch.bfloat16, average="ema", average_decay=0.999)
    weight = strategy.model[0].weight
    with torch.no_grad():
        weight.fill_(1.0)
        average.move(1)
        weight.fill_(2.0)
        for step in range(2, 102):
            average.move(step)
    average.put()
    assert float(weight.detach().float().mean()) == pytest.approx(2 - 0.999**100, abs=0.005)


def test_scoring_between_steps_leaves_no_trace():
    curves = []
    for scores in (False, True):
        strategy, average = prepared(average="ema", average_decay=0.5)
        for step in range(1, 6):
            train(strategy, range(step, step + 1))
            if scores:
                with average.in_place():
                    pass
        curves.append({name: value.clone() for name, value in strategy.model.state_dict().items()})
        average.put()
        curves[-1] |= {f"average {name}": value.clone() for name, value in strategy.model.state_dict().items()}
    assert all(torch.equal(value, curves[1][name]) for name, value in curves[0].items())


def test_before_the_first_step_that_counts_the_weights_themselves_are_scored():
    strategy, average = prepared(average="swa", average_start=5)
    train(strategy, range(1, 3))
    before = strategy.model[0].weight.detach().clone()
    with average.in_place():
        assert torch.equal(strategy.model[0].weight, before)
    assert not [*average.windows()]


def test_another_kind_begins_anew_and_says_so():
    strategy, average = prepared(average="swa")
    train(strategy, range(1, 4))
    state = average.state()
    assert average.load(state, 3) == ""
    assert (average.count, len(average.kept)) == (3, 1)
    other = Average(strategy, RegularizationSection(average="ema"))
    assert other.load(state, 3) == ("regularization.average was swa and is ema: the average begins anew after step 3")
    assert not other.kept
    assert Average(strategy, RegularizationSection()).load(None, 3) == ""


def test_what_it_takes_is_said():
    said = describe_average(RegularizationSection(average="last", average_count=3, average_every=10), 2_000_000)
    assert "mean of the last 3, every 10 steps from step 1: 6.0 MB more of host memory" in said
    assert describe_average(RegularizationSection(), 1) == ""


def test_statistics_of_batch_normalisation_far_apart_are_refused(tmp_path):
    from onecurve.config import load_recipe

    (path := tmp_path / "recipe.yaml").write_text(RECIPE)
    words = [str(path), "--model.batch_norm", "train", "--regularization.average"]
    with pytest.raises(ConfigError, match="statistics of batch normalisation would have to be measured anew"):
        load_recipe([*words, "swa"])
    assert isinstance(load_recipe([*words, "ema"])[0], Recipe)


def test_the_best_cannot_be_averaged_where_nothing_says_which_they_are(tmp_path):
    from onecurve.config import check_effects, load_recipe

    (path := tmp_path / "recipe.yaml").write_text(RECIPE)
    words = [str(path), "--regularization.average", "best"]
    with pytest.raises(ConfigError, match=r"averages the steps that eval\.best_metric finds best: set it"):
        load_recipe(words)
    scored = [*words, "--eval.best_metric", "loss", "--data.eval", str(path)]
    with pytest.raises(ConfigError, match=r"eval\.best_metric.*evaluated at most once"):
        check_effects(load_recipe(scored)[0], {}, {})
    with pytest.raises(ConfigError, match="statistics of batch normalisation"):
        load_recipe([*scored, "--eval.every", "2", "--model.batch_norm", "train"])
    with pytest.raises(ConfigError, match=r"regularization\.average_every.*only the best evaluations are"):
        check_effects(load_recipe([*scored, "--eval.every", "2", "--regularization.average_every", "2"])[0], {}, {})
    recipe, *_ = load_recipe([*scored, "--eval.every", "2"])
    assert recipe.num_best == 5
    assert "mean of the 5 best evaluations" in describe_average(recipe.regularization, 1_000_000)
