"""The best step of a checkpoint: kept while its scores are comparable with those to come."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from onecurve.config import EvalSection, RegularizationSection, TaskSection
from onecurve.evaluation import Best
from onecurve.strategies.average import Average
from onecurve.strategies.plain import Plain
from onecurve.tasks import load_task

SEARCH = {"max_new_tokens": 8, "num_beams": 2}


def best(metric: str | None = "bleu", count: int = 1, **settings: Any) -> Best:
    strategy = Plain(Accelerator(cpu=True), "no", 0.0)
    model = torch.nn.Linear(2, 2)
    strategy.prepare(model, torch.optim.SGD(model.parameters()), 1)
    task = load_task(TaskSection(name="seq2seq_lm", **{"generate": SEARCH, "metrics": ["bleu", "chrf"]} | settings))
    dev: Any = SimpleNamespace(examples=SimpleNamespace(folder=SimpleNamespace(name="dev")), sets=())
    average = Average(strategy, RegularizationSection())
    return Best(task, EvalSection.model_validate({"best_metric": metric}), strategy, dev, average, count)


def saved(**settings: Any) -> dict[str, Any]:
    """What a checkpoint of step 4 keeps, whose best step is 2."""
    before = best(**settings)
    for step, value in ((2, 30.0), (4, 20.0)):
        before.consider(step, {"bleu": value, "chrf": value, "loss": 1.0})
    return before.state()


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        ({"generate": {**SEARCH, "num_beams": 4}}, "task.generate.num_beams was 2 and is 4"),
        ({"generate": {**SEARCH, "max_new_tokens": 9}}, "task.generate.max_new_tokens was 8 and is 9"),
        ({"bleu_tokenizer": "char"}, "task.bleu_tokenizer was 13a and is char"),
        ({"metrics": ["bleu"]}, "task.metrics was ['bleu', 'chrf'] and is ['bleu']"),
    ],
)
def test_scores_by_other_settings_are_not_compared(settings: dict[str, Any], change: str) -> None:
    now = best(**settings)
    assert now.differs(saved()) == change
    assert now.load(saved(), 4) == f"{change}: step 2, the best so far, is dropped"
    assert (now.step, now.value, now.scores) == (0, None, {}), "nor does the last score count, made by other settings"


def test_what_is_scored_alike_is_kept() -> None:
    now = best()
    assert now.load(saved(), 4) == ""
    assert (now.step, now.value, now.without) == (2, 30.0, 1)


def test_the_loss_does_not_depend_on_how_texts_are_written() -> None:
    before = best("loss")
    before.consider(2, {"bleu": 1.0, "loss": 1.0})
    now = best("loss", generate={**SEARCH, "num_beams": 4})
    assert now.load(before.state(), 2) == "" and now.step == 2


def test_another_metric_starts_from_the_last_scores_only_where_they_were_made_alike() -> None:
    now = best("chrf")
    assert now.load(saved(), 4) == "eval.best_metric was bleu and is chrf: step 2, the best so far, is dropped"
    assert (now.step, now.value) == (4, 20.0)
    now = best("chrf", generate={**SEARCH, "num_beams": 4})
    now.load(saved(), 4)
    assert now.step == 0


def test_a_setting_that_a_checkpoint_does_not_know_was_at_its_default() -> None:
    state = saved()
    del state["scoring"]["answer_pattern"], state["scoring"]["bleu_tokenizer"]
    assert best().differs(state) == ""
    assert best(bleu_tokenizer="zh").differs(state) == "task.bleu_tokenizer was 13a and is zh"
    assert best().differs({**state, "scoring": {"name": "seq2seq_lm", "prefix": "", **state["scoring"]}}) == ""


def evaluated(best: Best, values: dict[int, float]) -> dict[int, torch.Tensor]:
    """Evaluate other weights at each step; return them."""
    seen = {}
    for step, value in values.items():
        torch.manual_seed(step)
        weight = best.strategy.unwrapped().weight
        weight.data = torch.randn(2, 2)
        seen[step] = weight.detach().clone()
        best.consider(step, {"bleu": value, "chrf": value, "loss": -value})
    return seen


def settled(best: Best, last: int) -> tuple[int, dict[str, Any], list[str]]:
    written: list[str] = []
    told = best.settle(last, lambda name, *_: written.append(name), lambda: {"bleu": 7.0}, lambda *args: args[2])
    return *told, written


VALUES = {1: 3.0, 2: 9.0, 3: float("nan"), 4: 5.0, 5: 9.0, 6: 5.0, 7: 4.0}


@pytest.mark.parametrize(("metric", "steps"), [("bleu", [2, 4, 5]), ("loss", [2, 4, 5])])
def test_the_mean_of_the_best_few_is_exported_and_scored(metric: str, steps: list[int]) -> None:
    now = best(metric, count=3)
    seen = evaluated(now, VALUES)
    step, scores, written = settled(now, 7)
    assert (step, scores, written) == (5, {"eval": {"bleu": 7.0, "averaged_steps": steps}}, ["model-last"])
    expected = torch.stack([seen[one].double() for one in steps]).mean(0).float()
    assert torch.equal(now.strategy.unwrapped().weight, expected)


def test_the_best_few_go_on_from_a_checkpoint() -> None:
    whole, before, after = best(count=3), best(count=3), best(count=3)
    evaluated(whole, VALUES)
    evaluated(before, {step: value for step, value in VALUES.items() if step < 5})
    state, windows = before.state(), list(before.windows())
    assert {window.key for window in windows} == {"best", "best-1", "best-2"}
    assert after.make_room(state, {"param", *(window.key for window in windows)}) == []
    for read, stored in zip(after.windows(), windows, strict=True):
        assert (read.key, read.name, read.offset) == (stored.key, stored.name, stored.offset)
        read.view.copy_(stored.view)
    assert after.load(state, 4) == ""
    evaluated(after, {step: value for step, value in VALUES.items() if step >= 5})
    assert after.state() == whole.state()
    settled(after, 7), settled(whole, 7)
    assert torch.equal(after.strategy.unwrapped().weight, whole.strategy.unwrapped().weight)


@pytest.mark.parametrize(
    ("before", "after", "kept", "unread"),
    [(3, 1, [2], ["best-1/", "best-2/"]), (1, 3, [2], []), (3, 2, [2, 5], ["best-2/"])],
)
def test_another_number_of_best_steps_keeps_the_best_of_before(
    before: int, after: int, kept: list[int], unread: list[str]
) -> None:
    then, now = best(count=before), best(count=after)
    evaluated(then, VALUES)
    assert now.make_room(then.state(), {window.key for window in then.windows()}) == unread
    told = ", ".join(map(str, kept))
    assert (
        now.load(then.state(), 7)
        == f"the {before} best steps were kept and now are {after}; of those before there are {told}"
    )
    assert [one.step for one in now.kept] == kept


def test_a_checkpoint_of_one_best_step_without_a_list_is_read() -> None:
    state = {name: value for name, value in saved().items() if name not in ("kept", "count")}
    now = best()
    assert now.make_room(state, {"param", "best"}) == [] and now.load(state, 4) == ""
    assert [(one.step, one.value) for one in now.kept] == [(2, 30.0)]
    assert best("chrf").make_room(state, {"param", "best"}) == ["best/"]


def test_fewer_evaluations_than_asked_for_are_all_averaged_and_one_alone_is_the_model() -> None:
    two, one = best(count=5), best(count=5)
    evaluated(two, {2: 1.0, 4: 2.0})
    assert settled(two, 4)[1]["eval"]["averaged_steps"] == [2, 4]
    seen = evaluated(one, {2: 1.0, 4: float("nan")})
    step, scores, written = settled(one, 4)
    assert (step, scores["eval"]["bleu"], written) == (2, 1.0, ["model-last"])
    assert torch.equal(one.strategy.unwrapped().weight, seen[2])
