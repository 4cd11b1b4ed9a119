"""What a recipe may say of generated texts, and what is refused before anything heavy is imported."""

from pathlib import Path
from typing import Any

import pytest

from onecurve.config import TaskSection
from onecurve.config.curve import curve_settings
from onecurve.data.cache_key import task_identity
from onecurve.errors import ConfigError
from onecurve.machine import optional_packages
from onecurve.preflight import preflight, read
from onecurve.tasks import load_task
from tests.launching import write_recipe

GENERATE = {"max_new_tokens": 8}


@pytest.fixture
def argv(tmp_path: Path) -> list[str]:
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        output_dir=str(tmp_path / "run"),
        task={"name": "seq2seq_lm"},
        model={"path": "org/model"},
        data={"train": "a.jsonl", "eval": "b.jsonl"},
        train={"max_steps": 3},
        eval={"every": 1},
    )
    return [str(recipe)]


BEAMS = ["--task.generate.num_beams", "4"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([*BEAMS, "--task.generate.do_sample", "true"], "task.generate: num_beams 4 and do_sample exclude each other"),
        (["--task.generate.top_p", "0.9"], "task.generate: top_p has no effect without do_sample: true"),
        (["--task.generate.length_penalty", "2.0"], "length_penalty has no effect without num_beams of 2 or more"),
        (["--task.generate.max_new_tokens", "0"], "task.generate.max_new_tokens: must be greater than 0; got 0"),
        (["--task.generate.max_tokens", "9"], "Unknown setting 'task.generate.max_tokens'. Did you mean"),
        ([*BEAMS, "--task.metrics", "[blue]"], "task.metrics.0: must be 'bleu'"),
        (["--task.metrics", "bleu"], "task.metrics: has no effect: nothing is generated, as task.generate is not set"),
        ([*BEAMS, "--task.bleu_tokenizer", "zh"], "task.bleu_tokenizer: has no effect: task.metrics has no bleu"),
        ([*BEAMS, "--task.answer_pattern", "x"], "task.answer_pattern: has no effect: task.metrics has no exact_match"),
        ([*BEAMS, "--task.answer_pattern", "(x"], "task.answer_pattern: is no regular expression"),
        ([*BEAMS, "--eval.best_metric", "bleu"], "no metric 'bleu'; the metrics of this task are loss, perplexity"),
        (["--eval.samples", "5"], "eval.samples: has no effect: no texts are generated"),
    ],
)
def test_mistakes_are_told(argv: list[str], overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        read([*argv, *overrides])
    assert said in str(error.value)


def test_a_metric_of_texts_can_choose_the_best_step(argv: list[str]) -> None:
    checked = read([*argv, *BEAMS, "--task.metrics", "[rouge, bleu]", "--eval.best_metric", "rougeL"])
    assert checked.task.metric_names == ["loss", "perplexity", "rouge1", "rouge2", "rougeL", "rougeLsum", "bleu"]
    assert not {"rougeL", "bleu"} & checked.task.lower_is_better


def test_sacrebleu_is_only_needed_where_it_is_asked_for(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = optional_packages.find_spec
    monkeypatch.setattr(optional_packages, "find_spec", lambda name: None if name == "sacrebleu" else found(name))
    preflight([*argv, *BEAMS, "--task.metrics", "rouge"])
    with pytest.raises(ConfigError, match=r"needs sacrebleu\. Install: pip install 'onecurve\[text\]'"):
        preflight([*argv, *BEAMS, "--task.metrics", "chrf"])


@pytest.mark.parametrize("name", ["sft", "seq2seq_lm"])
def test_how_texts_are_scored_changes_neither_curve_nor_cached_examples(name: str) -> None:
    one = load_task(TaskSection(name=name))
    settings: dict[str, Any] = {"metrics": ["exact_match", "bleu"], "answer_pattern": "x", "bleu_tokenizer": "zh"}
    other = load_task(TaskSection(name=name, generate=GENERATE, **settings))
    assert task_identity(one) == task_identity(other)
    curves = [curve_settings({"task": task.settings.model_dump(mode="json")}) for task in (one, other)]
    assert curves[0] == curves[1] and curves[0]
