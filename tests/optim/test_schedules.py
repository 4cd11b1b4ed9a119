import pytest
import torch
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_wsd_schedule,
)

from onecurve.config import OptimSection
from onecurve.errors import ConfigError
from onecurve.optim import check_optim, lr_at


def upstream(build, max_steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = build(optimizer)
    rates = []
    for _ in range(max_steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("constant", lambda o: get_constant_schedule_with_warmup(o, 5)),
        ("linear", lambda o: get_linear_schedule_with_warmup(o, 5, 30)),
        ("cosine", lambda o: get_cosine_schedule_with_warmup(o, 5, 30)),
        ("wsd", lambda o: get_wsd_schedule(o, 5, 6, num_training_steps=30, decay_type="linear", min_lr_ratio=0)),
    ],
)
def test_a_schedule_is_the_one_transformers_calls_by_that_name(name, build):
    section = OptimSection(lr=0.5, schedule=name, warmup_steps=5, decay_steps=6 if name == "wsd" else None)
    ours = [lr_at(step, 30, section) for step in range(1, 31)]
    assert ours == pytest.approx(upstream(build, 30), rel=1e-12)


def test_the_floor_is_where_the_run_would_end():
    section = OptimSection(lr=1.0, schedule="cosine", min_lr_ratio=0.1)
    assert lr_at(1, 10, section) == 1.0
    assert lr_at(11, 10, section) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"name": "adamm"}, "optim.name: must be one of adamw, adamw_8bit, adafactor, sgd; got 'adamm'"),
        ({"schedule": "cos"}, "optim.schedule: must be one of constant, linear, cosine, wsd; got 'cos'"),
        ({"momentum": 0.9}, "Unknown setting 'optim.momentum' of adamw"),
        ({"lrr": 0.9}, "Did you mean 'optim.lr'?"),
        ({"beta1": "high"}, "optim.beta1: must be a number; got 'high'"),
        ({"name": "sgd", "nesterov": 1}, "optim.nesterov: must be true or false; got 1"),
        ({"name": "sgd", "nesterov": True}, "optim.nesterov: needs momentum. Set optim.momentum, such as 0.9."),
        ({"beta1": 1.5}, "optim.beta1: must be less than 1; got 1.5"),
        ({"beta2": 1}, "optim.beta2: must be less than 1; got 1"),
        ({"eps": -1}, "optim.eps: must be greater than 0; got -1"),
        ({"name": "sgd", "momentum": -0.1}, "optim.momentum: must be greater than or equal to 0; got -0.1"),
        ({"name": "adafactor", "clip_threshold": 0.5}, "optim.clip_threshold: must be greater than or equal to 1"),
        ({"name": "adafactor", "beta2_decay": 0.1}, "optim.beta2_decay: must be less than or equal to 0"),
        ({"beta1": True}, "optim.beta1: must be a number; got True"),
    ],
)
def test_a_setting_that_would_be_ignored_is_refused(values, said):
    with pytest.raises(ConfigError) as error:
        check_optim(OptimSection(**values))
    assert said in str(error.value)
