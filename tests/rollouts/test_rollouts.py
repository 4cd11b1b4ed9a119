"""Completions of a step: the same whatever the batch, after a resume and in a replay; what may go wrong is told."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from onecurve.config import Recipe
from onecurve.content.completions import Completion
from onecurve.data.checking import Report
from onecurve.data.loader import Loader
from onecurve.data.made_examples import MadeExamples
from onecurve.data.plan import BatchPlan, plan_run
from onecurve.data.splits import Split
from onecurve.errors import BetweenUpdates, ConfigError
from onecurve.evaluation.scores import Evaluator
from onecurve.rollouts.drawing import as_read
from onecurve.rollouts.judges import Judges
from onecurve.rollouts.records import Records, most_bytes
from onecurve.rollouts.reference import Referee
from onecurve.rollouts.rollouts import Rollouts
from onecurve.strategies.plain import Plain
from onecurve.tasks._rewards import RewardFunction
from onecurve.tasks.base import Survey
from onecurve.tasks.grpo import GrpoSettings, Task
from tests.readings import ReadingOf

PROMPTS = ["the quick brown fox", "a", "we were happy with the film.", "the dog sleeps", "in", "the sun"]
NEW, ENDS = 6, [2, 4, *range(100, 160)]


def length(completions: Sequence[str], answer: Sequence[str]) -> list[float]:
    return [len(text) + len(right) / 10 for text, right in zip(completions, answer, strict=True)]


@pytest.fixture(scope="module")
def strategy(tiny_llama: Path) -> Plain:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    with torch.no_grad():
        for weight in model.parameters():  # upstream starts at 0.02, where every prompt is answered alike
            weight.mul_(3)
    model.generation_config.eos_token_id = ENDS  # so that some completions end and others are cut off
    found = Plain(Accelerator(cpu=True), "no", 0.0)
    found.prepare(model, torch.optim.SGD(model.parameters()), 1)
    return found


@pytest.fixture
def run(strategy: Plain, tiny_llama: Path, tmp_path: Path) -> Any:
    """Return what completes steps in a folder, the loader of six prompts, and a plan of two prompts a step."""
    from transformers import AutoConfig, AutoTokenizer

    read = ReadingOf(lambda: AutoTokenizer.from_pretrained(tiny_llama), 128, AutoConfig.from_pretrained(tiny_llama))

    def made(name: str = "run", size: int = 8, function: Any = length, split: str = "train", **settings: Any) -> Any:
        task = Task(GrpoSettings(**{"completions": 4, "max_completion_length": NEW, "top_k": 40, **settings}))
        task.rewards = [RewardFunction("m:length", function, {"answer": True}, frozenset({"completions"}), False)]
        task.targets = frozenset({"answer"})
        rows = [{"prompt": text, "answer": "x" * number} for number, text in enumerate(PROMPTS)]
        examples = [one for row in rows for one in task.encode(row, Survey(), read, truncate=True)]
        recipe = Recipe.model_validate(
            {
                "output_dir": str(tmp_path / name),
                "task": {"name": "grpo"},
                "model": {"path": str(tiny_llama)},
                "data": {"train": "x"},
                "train": {"max_steps": 6, "global_batch_size": 8, "micro_batch_size": size},
                "eval": {"samples": 6},
            }
        )
        (tmp_path / name).mkdir(exist_ok=True)
        prompts = Split(split, Report(), MadeExamples(examples, range(10, 10 + len(examples)), task))
        referee = Referee(recipe, strategy) if task.has_reference else None
        judges = Judges({}, recipe, strategy.accelerator)
        rollouts = Rollouts(task, recipe, tmp_path / name, strategy, judges, referee=referee)
        loader = Loader(prompts, task, read, strategy.accelerator, complete=rollouts)
        plan = BatchPlan(np.ones(len(examples), np.int64), 0, 2, size, max_steps=6)
        return SimpleNamespace(task=task, loader=loader, plan=plan, recipe=recipe, rollouts=rollouts)

    return made


def examples_of(one: Any, step: int) -> list[dict[str, Any]]:
    loader = one.loader.completed(one.plan.step(step)).loader
    return [loader.split[number] for number in range(len(loader.split))]


def test_a_completion_does_not_depend_on_its_batch_and_is_drawn_anew_in_another_pass(run: Any) -> None:
    one, other = run("one"), run("other", size=1)
    drawn = [examples_of(one, step) for step in (1, 2, 3, 4, 5, 6)]
    texts = [[tuple(example["completion"]) for example in step] for step in drawn]
    assert [[tuple(e["completion"]) for e in examples_of(other, step)] for step in (1, 4)] == [texts[0], texts[3]]
    first = {tuple(e["input_ids"]): tuple(e["completion"]) for step in drawn[:3] for e in step}
    second = {tuple(e["input_ids"]): tuple(e["completion"]) for step in drawn[3:] for e in step}
    assert len(first) == len(PROMPTS) and first.keys() == second.keys()
    assert all(first[prompt] != second[prompt] for prompt in first)
    assert all(len(set(step[:4])) > 1 for step in texts), "a group's completions differ"
    ended = {bool(e["ended"]) for step in drawn for e in step}
    assert ended == {True, False}
    for example in (e for step in drawn for e in step):
        *before, last = example["completion"]
        assert (last in ENDS) == example["ended"] and not {*before} & {*ENDS}
        assert example["ended"] or len(example["completion"]) == NEW


def test_log_probabilities_are_those_that_a_plain_model_gives(run: Any, strategy: Plain) -> None:
    one = run(steps_per_generation=2, temperature=0.7)
    model = strategy.unwrapped().eval()
    for example in examples_of(one, 1):
        ids = torch.tensor([[*example["input_ids"], *example["completion"]]])
        with torch.no_grad():
            logps = (model(input_ids=ids).logits[0] / 0.7).log_softmax(-1)
        size = len(example["completion"])
        own = logps[-size - 1 : -1]
        assert own.gather(1, ids[0, -size:, None])[:, 0].tolist() == pytest.approx(example["drawn_logps"], abs=2e-5)
        assert float(-(own.exp() * own).sum(-1).mean()) == pytest.approx(example["entropy"], abs=1e-4)


def test_the_reference_is_the_model_before_step_1_and_is_recorded(run: Any, tiny_llama: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    one = run("one", size=4, beta=0.1, temperature=0.7)
    first, facts = examples_of(one, 1), one.loader.completed(one.plan.step(2)).facts
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()  # the weights that the strategy's were made of
    for example in first:
        ids, size = torch.tensor([[*example["input_ids"], *example["completion"]]]), len(example["completion"])
        with torch.no_grad():
            logps = (model(input_ids=ids).logits[0, -size - 1 : -1] / 0.7).log_softmax(-1)
        theirs = logps.gather(1, ids[0, -size:, None])[:, 0].tolist()
        assert theirs == pytest.approx(example["reference_logps"], abs=2e-5)
    assert facts["kl"] > 0
    assert examples_of(run("two", beta=0.1, temperature=0.7, replay=str(tmp_path / "one")), 1) == first
    examples_of(run("without"), 1)
    with pytest.raises(ConfigError, match="has nothing of a reference"):
        examples_of(run("three", beta=0.1, replay=str(tmp_path / "without")), 1)


def test_a_step_is_made_of_its_completions(run: Any) -> None:
    one = run(size=4)
    prompts = one.plan.step(2)
    loader, step, facts = one.loader.completed(prompts)
    assert one.loader.completed(prompts).step is step, "a bad step is looked at as it was"
    assert step.sample_digest == prompts.sample_digest and step.num_samples == prompts.num_samples
    assert sorted(np.concatenate(step.micro_batches).tolist()) == [*range(8)]
    assert [len(part) for part in step.micro_batches] == [4, 4]
    assert step.num_items == 8 * NEW  # dr_grpo's constant divisor
    assert [int(row) for row in loader.split.examples.rows] == [10 + n for n in prompts.sample_ids for _ in range(4)]
    batch = next(iter(loader.micro_batches(step))).batch
    assert len(batch["input_ids"]) == 4
    advantages = [loader.split[number]["advantage"] for number in range(8)]
    assert sum(advantages[:4]) == pytest.approx(0) and sum(advantages[4:]) == pytest.approx(0) and any(advantages)
    assert loader.num_tokens(step) == sum(map(one.task.length, loader.split.take(range(8))))
    assert facts["reward"] == pytest.approx(np.mean([loader.split[number]["reward"] for number in range(8)]))


def test_what_was_recorded_is_replayed_in_another_cut(run: Any, tmp_path: Path) -> None:
    first = [examples_of(run("first"), step) for step in (1, 2)]

    def never(completions: Any, answer: Any) -> Any:
        raise AssertionError("rewards are replayed too")

    again = run("again", size=2, function=never, replay=str(tmp_path / "first"))
    again.rollouts.strategy = None  # and no model writes
    assert [examples_of(again, step) for step in (1, 2)] == first
    lines = (tmp_path / "again" / "rollouts" / "step-00000001.jsonl").read_text()
    assert lines == (tmp_path / "first" / "rollouts" / "step-00000001.jsonl").read_text()
    kept = json.loads(lines.splitlines()[1])
    assert kept.keys() == {"example", "ids", "logps", "entropy", "ended", "text", "rewards", "reference"}
    with pytest.raises(ConfigError, match=r"task.replay: .*step-00000003.jsonl' is missing"):
        examples_of(again, 3)
    (tmp_path / "apart").mkdir()
    (tmp_path / "apart" / "rollouts").mkdir()
    apart = lines.replace('"text": "', '"text": "\u2028')  # which JSON leaves as it is
    (tmp_path / "apart" / "rollouts" / "step-00000001.jsonl").write_text(apart)
    assert examples_of(run("fifth", replay=str(tmp_path / "apart")), 1) == first[0]
    for text in (lines.rsplit("{", 1)[0], "[]\n", '{"count": 1}\n', lines.replace('"ids"', '"tokens"')):
        (tmp_path / "first" / "rollouts" / "step-00000003.jsonl").write_text(text)
        with pytest.raises(ConfigError, match="cut short or cannot be read"):
            examples_of(again, 3)
    with pytest.raises(ConfigError, match=r"task.replay: .*completions of other prompts"):
        examples_of(run("third", completions=2, replay=str(tmp_path / "first")), 1)
    other = run("fourth", replay=str(tmp_path / "first"))
    other.task.rewards = [RewardFunction("m:other", length, {}, frozenset(), False)]
    with pytest.raises(ConfigError, match="has rewards of length, and this run asks for other"):
        examples_of(other, 1)


def test_completions_of_several_steps_are_drawn_at_once_and_found_again(run: Any, strategy: Plain) -> None:
    one = run(steps_per_generation=3)
    first = examples_of(one, 1)
    model = strategy.unwrapped()
    with torch.no_grad():
        weight = model.lm_head.weight.clone()
        model.lm_head.weight.mul_(0.1)  # an update
    second = examples_of(one, 2)
    assert examples_of(run(steps_per_generation=3), 2) == second, "a run that goes on amid the three reads them"
    (one.rollouts.run / "rollouts" / "step-00000003.jsonl").unlink()  # as where the run was to end after step 2
    assert examples_of(run(steps_per_generation=3), 2) == second
    assert examples_of(run(steps_per_generation=3), 1) != first, "one that goes on before them draws them anew"
    with torch.no_grad():
        model.lm_head.weight.copy_(weight)
    assert not run("elsewhere", steps_per_generation=3).rollouts.drawn
    folder = one.rollouts.run / "rollouts"
    assert [path.name[:13] for path in sorted(folder.iterdir())] == ["step-00000001", "step-00000002", "step-00000003"]
    (folder / "step-00000009.jsonl").write_text("of a run before")
    examples_of(run(steps_per_generation=3), 1)
    assert len([*folder.iterdir()]) == 3


def test_a_reward_function_that_fails_is_told_with_its_row(run: Any) -> None:
    def failing(completions: Any, answer: Any) -> Any:
        raise ValueError("no judge")

    said = r"task.rewards: m:length raised ValueError.*for the completion .* of row 1(.|\n)*train.allow_changes"
    with pytest.raises(BetweenUpdates, match=said):
        examples_of(run(function=failing), 1)


def test_what_a_record_takes_is_known_before_and_is_not_much_less(tmp_path: Path) -> None:
    random, size, count = np.random.default_rng(0), 256, 8
    for has_reference in (False, True):
        logps = as_read(-random.exponential(1.0, size).astype(np.float32))
        ids = random.integers(0, 150_000, size).tolist()  # of a large vocabulary, 4 letters a token
        one = Completion(ids, logps, 1.25, True, "abcd" * size, {"right": 1.0}, logps if has_reference else None)
        step = SimpleNamespace(number=1, sample_ids=np.arange(2))
        Records(tmp_path).write(step, [{"input_ids": [1]}] * count, [one] * count)
        written = (tmp_path / "rollouts" / "step-00000001.jsonl").stat().st_size
        assert written <= most_bytes(size, count, has_reference) <= 1.1 * written


def test_a_model_s_own_habits_of_writing_are_left_out(run: Any, strategy: Plain) -> None:
    first, settings = examples_of(run("one"), 1), strategy.unwrapped().generation_config
    habits = {"min_length": 40, "suppress_tokens": [*range(5, 50)], "forced_eos_token_id": 2}
    before = {name: getattr(settings, name) for name in [*habits, "return_dict_in_generate"]}
    try:
        for name, value in {**habits, "return_dict_in_generate": True}.items():
            setattr(settings, name, value)
        assert examples_of(run("other"), 1) == first
    finally:
        for name, value in before.items():
            setattr(settings, name, value)


def test_an_evaluation_rewards_one_completion_a_prompt_and_shows_some(run: Any, strategy: Plain) -> None:
    one = run(split="eval")
    scores = Evaluator(strategy, one.recipe, Survey())(one.loader)
    assert set(one.task.metric_names) <= scores.keys() and scores["loss"] == 0
    texts = [sample["text"] for sample in scores["samples"]]
    mean = np.mean([len(text) + number / 10 for number, text in enumerate(texts)])
    assert len(texts) == len(PROMPTS) and scores["reward"] == pytest.approx(mean)
    assert scores["samples"][0].keys() == {"row", "prompt", "text", "reward"} and scores["samples"][2]["row"] == 12
    again = Evaluator(strategy, one.recipe, Survey())(one.loader)
    assert again == scores
    drawn = run(split="eval", eval_sampled=True)
    assert Evaluator(strategy, drawn.recipe, Survey())(drawn.loader)["samples"] != scores["samples"]


def test_a_micro_batch_must_have_room_for_a_prompt_and_its_completion(run: Any) -> None:
    one = run()
    split, longest = replace(one.loader.split, each=4, growth=NEW), int(one.loader.split.lengths.max())
    for tokens, fits in ((longest + NEW, True), (longest + NEW - 1, False)):
        train = one.recipe.train.model_copy(update={"micro_batch_tokens": tokens})
        with nullcontext() if fits else pytest.raises(ConfigError, match=f"{NEW} of them for a completion"):
            plan_run([split], one.recipe.model_copy(update={"train": train}))
