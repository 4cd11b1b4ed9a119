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


def best(metric: str | None = "bleu", **settings: Any) -> Best:
    strategy = Plain(Accelerator(cpu=True), "no", 0.0)
    model = torch.nn.Linear(2, 2)
    strategy.prepare(model, torch.optim.SGD(model.parameters()), 1)
    task = load_task(TaskSection(name="seq2seq_lm", **{"generate": SEARCH, "metrics": ["bleu", "chrf"]} | settings))
    dev: Any = SimpleNamespace(examples=SimpleNamespace(folder=SimpleNamespace(name="dev")), sets=())
    average = Average(strategy, RegularizationSection())
    return Best(task, EvalSection.model_validate({"best_metric": metric}), strategy, dev, average)


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
