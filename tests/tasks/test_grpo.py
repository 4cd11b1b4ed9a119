"""The loss of completions that were drawn, by other hands; what the settings and the reward functions must be."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from onecurve.config import TaskSection
from onecurve.content.completions import Completion, RewardError
from onecurve.errors import BadRow, ConfigError
from onecurve.losses import policy
from onecurve.preflight import read
from onecurve.tasks import load_task
from onecurve.tasks._rewards import RewardFunction, check_names, code_hash
from onecurve.tasks.base import Annotates, Generates, RollsOut, Survey, Writes
from onecurve.tasks.grpo import Task
from tests.readings import ReadingOf, reading
from tests.tasks.contract import Case, prepare, without_dropout

ROWS = [
    {"prompt": "what is it?", "answer": "a dog"},
    {"prompt": [{"role": "user", "content": "and that, in the sun?"}], "answer": "a fox"},
]
LONGEST = 7


def oracle(
    loss_type: str = "dr_grpo", temperature: float = 1.0, beta: float = 0.0, epsilons: tuple[float, float] | None = None
) -> Any:
    """The loss as Shao et al. write it, from a plain model's logits, a completion and a token at a time."""

    def loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits / temperature
        of_completions, num_tokens = [], 0
        for row, mask in enumerate(batch["completion_mask"].tolist()):
            losses = []
            for place in (place for place, counts in enumerate(mask) if counts):
                logp = logits[row, place - 1].log_softmax(0)[batch["input_ids"][row, place]]
                advantage = batch["advantages"][row]
                if epsilons is None:
                    objective = advantage  # the ratio of a probability to itself is 1
                else:
                    ratio = torch.exp(logp - batch["drawn_logps"][row, place - 1])
                    objective = min(ratio * advantage, ratio.clip(1 - epsilons[0], 1 + epsilons[1]) * advantage)
                apart = (batch["reference_logps"][row, place - 1] if beta else logp) - logp
                losses.append(-objective + beta * (apart.exp() - apart - 1))
            of_completions.append(torch.stack(losses))
            num_tokens += len(losses)
        if loss_type == "grpo":
            return torch.stack([one.mean() for one in of_completions]).mean()
        divisor = num_tokens if loss_type == "dapo" else len(of_completions) * LONGEST
        return torch.stack([one.sum() for one in of_completions]).sum() / divisor

    return loss


NOT_FIXED = float("nan")  # at logits of zero the loss is what the advantages make of it
SETTINGS = {"rewards": ["tests.tasks.letters:letters"], "completions": 2, "max_completion_length": LONGEST}
CASES = {
    "grpo": Case(ROWS, SETTINGS, nats_per_item=NOT_FIXED, oracle=oracle()),
    "grpo, per completion": Case(
        ROWS,
        {**SETTINGS, "loss_type": "grpo", "temperature": 0.7, "beta": 0.3},
        nats_per_item=NOT_FIXED,
        oracle=oracle("grpo", 0.7, 0.3),
    ),
    "grpo, in several steps": Case(
        ROWS,
        {**SETTINGS, "loss_type": "dapo", "steps_per_generation": 2, "epsilon": 0.1, "epsilon_high": 0.5},
        nats_per_item=NOT_FIXED,
        oracle=oracle("dapo", epsilons=(0.1, 0.5)),
    ),
}


def test_what_it_can() -> None:
    task = load_task(TaskSection(name="grpo"))
    assert isinstance(task, RollsOut) and isinstance(task, Generates)
    assert not isinstance(task, Annotates) and not isinstance(task, Writes)


def trl_loss(model: Any, examples: list[dict[str, Any]], settings: Any, pad_id: int) -> Tensor:
    """TRL's own code: GRPOTrainer._compute_loss on the same tokens, prompts padded on the left."""
    from trl import GRPOTrainer

    def logps(model: Any, ids: Tensor, mask: Tensor, kept: int, **_: Any) -> tuple[Tensor, Tensor, None]:
        logits = model(input_ids=ids, attention_mask=mask).logits[:, -kept - 1 : -1] / settings.temperature
        found = logits.log_softmax(-1)
        return found.gather(-1, ids[:, -kept:, None])[..., 0], -(found.exp() * found).sum(-1), None

    def padded(rows: list[list[Any]], value: Any, left: bool = False) -> Tensor:
        width = max(map(len, rows))
        return torch.tensor(
            [[value] * (width - len(r)) * left + r + [value] * (width - len(r)) * (not left) for r in rows]
        )

    prompts, own = [e["input_ids"] for e in examples], [e["completion"] for e in examples]
    inputs = {
        "prompt_ids": padded(prompts, pad_id, left=True),
        "prompt_mask": padded([[1] * len(one) for one in prompts], 0, left=True),
        "completion_ids": padded(own, pad_id),
        "completion_mask": padded([[1] * len(one) for one in own], 0),
        "advantages": torch.tensor([e["advantage"] for e in examples]),
        "ref_per_token_logps": padded([e["reference_logps"] for e in examples], 0.0),
        "num_items_in_batch": torch.tensor(float(sum(map(len, own)))),
    }
    if "drawn_logps" in examples[0]:
        inputs["old_per_token_logps"] = padded([e["drawn_logps"] for e in examples], 0.0)
    high = settings.epsilon if settings.epsilon_high is None else settings.epsilon_high
    trainer = SimpleNamespace(
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=settings.beta,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        loss_type=settings.loss_type,
        epsilon_low=settings.epsilon,
        epsilon_high=high,
        use_vllm=False,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        max_completion_length=settings.max_completion_length,
        accelerator=SimpleNamespace(num_processes=1, reduce=lambda t, reduction: t, gather=lambda t: t),
        _metrics={"train": defaultdict(list)},
        _entropy_bonus_enabled=False,
        _get_per_token_logps_and_entropies=logps,
    )
    loss: Tensor = GRPOTrainer._compute_loss(trainer, model, inputs)
    return loss


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_trl_s(case: str, tiny_llama: Path) -> None:
    prepared = prepare(replace(CASES[case], task="grpo"), tiny_llama)
    task, model = prepared.task, without_dropout(prepared.model)
    batch = prepared.batch()
    sums = task.loss_sum(task.forward(model, batch), batch).view(-1)
    items = torch.tensor(task.num_items(batch)).view(-1)
    gradients = []
    ours = sums[0] / items[0]
    theirs = trl_loss(model, prepared.examples, task.settings, prepared.reading.tokenizer.pad_token_id)
    for loss in (ours, theirs):
        model.zero_grad()
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < 1e-5


# Advantages


REWARDS = np.array([[1.0, 0.0, 0.0, 3.0], [2.0, 2.0, 2.0, 2.0]])


def test_a_reward_is_compared_with_its_group() -> None:
    assert policy.advantages(REWARDS, "group", "none").tolist() == [[0.0, -1.0, -1.0, 2.0], [0.0] * 4]


@pytest.mark.parametrize("baseline", ["group", "rloo"])
@pytest.mark.parametrize("scale", ["none", "group", "batch"])
def test_nothing_is_learnt_from_equal_rewards(baseline: str, scale: str) -> None:
    assert policy.advantages(np.full((2, 6), 0.1), baseline, scale).tolist() == [[0.0] * 6] * 2


def test_a_reward_is_compared_with_the_group_s_others() -> None:
    found = policy.advantages(REWARDS, "rloo", "none")
    assert found[0].tolist() == pytest.approx([1 - 3 / 3, 0 - 4 / 3, 0 - 4 / 3, 3 - 1 / 3])
    assert found[1].tolist() == [0.0] * 4


@pytest.mark.parametrize("scale", ["group", "batch"])
def test_advantages_are_scaled_as_trl_scales_them(scale: str) -> None:
    rewards = torch.tensor(REWARDS)
    deviation = rewards.std(1, keepdim=True) if scale == "group" else rewards.std()
    theirs = (rewards - rewards.mean(1, keepdim=True)) / (deviation + 1e-4)
    assert np.allclose(policy.advantages(REWARDS, "group", scale), theirs.numpy())


def test_the_rewards_of_several_functions_are_weighted_and_told_apart() -> None:
    task = load_task(TaskSection(name="grpo", completions=2, rewards=["a:b", "a:c"], reward_weights=[1.0, 0.5]))
    assert isinstance(task, Task)
    task.rewards = [RewardFunction(name, len, {}, frozenset(), False) for name in ("a:b", "a:c")]
    prompts = [{"input_ids": [5], "asked": "{}"}] * 4
    each = [{"b": 1.0, "c": 2.0}, {"b": 0.0, "c": 0.0}, {"b": 1.0, "c": 0.0}, {"b": 1.0, "c": 0.0}]
    completions = [Completion([7] * (n + 1), [-1.0] * (n + 1), 0.5, n < 3, "", one) for n, one in enumerate(each)]
    examples = task.answered(prompts, completions, training=True)
    assert [one["advantage"] for one in examples] == [1.0, -1.0, 0.0, 0.0]
    facts = task.facts(examples)
    assert facts["reward"] == pytest.approx(1.0) and facts["rewards/c/mean"] == pytest.approx(0.5)
    assert facts["rewards/b/std"] == pytest.approx(0.5)
    assert facts["frac_reward_zero_std"] == 0.5 and facts["completions/mean_length"] == 2.5
    assert facts["completions/clipped_ratio"] == 0.25


# Rewards


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write reward functions and return them."""
    monkeypatch.chdir(tmp_path)

    def written(text: str, name: str = "f") -> RewardFunction:
        path = tmp_path / f"r{len(list(tmp_path.iterdir()))}.py"
        path.write_text(text)
        return RewardFunction.load(f"{path.name}:{name}")

    return written


TOLD = {"prompts": ["p", "q"], "completions": ["a", "b"], "completion_ids": [[1], [2]], "answer": ["a", "c"]}


def test_a_function_is_given_what_it_asks_for(code: Any) -> None:
    function = code("def f(completions, answer, level=1): return [c == a for c, a in zip(completions, answer)]")
    assert function.columns == {"answer": True, "level": False}
    assert function(TOLD) == [1.0, 0.0]
    every = code("def f(completions, **rest): return [len(rest)] * len(completions)")
    assert every(TOLD) == [3.0, 3.0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def f(prompt, completions): ...", "parameter 'prompt'.*Call it prompts"),
        ("async def f(completions): ...", "is async"),
        ("f = 3", "is not a function"),
        ("def f(completions, /): ...", "cannot be given by name"),
        ("def g(completions): ...", "there is no 'f'"),
    ],
)
def test_what_cannot_be_called_is_refused(code: Any, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"task.rewards: .*{said}"):
        code(text)


@pytest.mark.parametrize(
    ("body", "said", "place"),
    [
        ("return [1.0]", "returned 1 rewards for 2 completions", None),
        ("return [1.0, float('nan')]", "returned nan", 1),
        ("return [None, 1.0]", "returned None, which is no number", 0),
        ("return 3", "returned 3, which is no list", None),
        ("return '12'", "returned '12', which is no list", None),
        ("return dict.fromkeys([1.0, 2.0])", "which is no list", None),
        ("return [1.0, '2.0']", "returned '2.0', which is no number", 1),
        ("return [1.0, 10**400]", "which is no number", 1),
        ("import torch; return torch.ones(2, 3)", "which is no number", 0),
        ("return (1 / (c != 'b') for c in completions)", "raised ZeroDivisionError", 1),
        ("raise SystemExit('judge')", "raised SystemExit: judge", 0),
        ("return [1 / (c != 'b') for c in completions]", r"raised ZeroDivisionError: .* \(r0.py, line 1\)", 1),
    ],
)
def test_a_function_that_fails_is_told_with_the_completion(code: Any, body: str, said: str, place: int | None) -> None:
    with pytest.raises(RewardError, match=said) as failed:
        code(f"def f(completions): {body}")(TOLD)
    assert failed.value.place == place


def test_what_numbers_come_in_does_not_matter(code: Any) -> None:
    for returned in (
        "import numpy; return numpy.arange(2)",
        "import torch; return torch.arange(2.0)",
        "yield from (0, 1)",
    ):
        assert code(f"def f(completions): {returned}")(TOLD) == [0.0, 1.0]


def test_a_default_holds_where_no_row_has_the_column(code: Any) -> None:
    function = code("def f(completions, scale=2.0, level=None): return [scale if level is None else 9.0] * 2")
    assert function({**TOLD, "scale": [None, None]}) == [2.0, 2.0]
    assert function({**TOLD, "level": [None, 3]}) == [9.0, 9.0]


def test_what_a_function_changes_is_not_what_is_learnt(code: Any) -> None:
    function = code("def f(completions, completion_ids): return [float(len([ids.pop()])) for ids in completion_ids]")
    told = {**TOLD, "completion_ids": [[1, 2], [3]]}
    assert function(told) == [1.0, 1.0] and told["completion_ids"] == [[1, 2], [3]]


def test_the_completion_that_is_to_blame_is_not_looked_for_long(code: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onecurve.tasks._rewards._SECONDS_TO_BLAME", -1.0)
    with pytest.raises(RewardError) as failed:
        code("def f(completions): raise ValueError('the judge is away')")(TOLD)
    assert failed.value.place is None


def test_the_code_behind_a_partial_and_a_method_is_hashed(code: Any) -> None:
    for text in (
        "from functools import partial\ndef g(completions, by): return [{}] * 2\nf = partial(g, by=1)",
        "class J:\n    def g(self, completions): return [{}] * 2\nf = J().g",
    ):
        hashes = {code_hash([code(text.format(number))]) for number in (1, 2)}
        assert len(hashes) == 2


def test_two_functions_of_one_name_are_refused(code: Any) -> None:
    one, other = code("def f(completions): ..."), code("def f(completions): ...")
    with pytest.raises(ConfigError, match="two rewards are called 'f'"):
        check_names([one.name, other.name])


# The recipe


RECIPE = """
output_dir: run
task: {name: grpo, rewards: [mine.py:right], completions: 4}
model: {path: model}
data: {train: train.jsonl, eval: dev.jsonl}
train: {max_steps: 3, global_batch_size: 8, micro_batch_size: 4}
eval: {every: 1}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "there").mkdir()
    path = tmp_path / "there" / "recipe.yaml"
    path.write_text(RECIPE)
    (tmp_path / "there" / "mine.py").write_text("def right(completions, answer, level=None): return [0.0]\n")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return lambda *overrides: read([str(path), *overrides])


def test_the_columns_are_what_the_functions_ask_for(recipe: Any) -> None:
    task = recipe().task
    assert [*task.columns] == ["prompt", "system?", "tools?", "answer", "level?"]
    assert task.targets == {"answer", "level"}
    assert "rewards/right/mean" in task.metric_names


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["--task.rewards", "[]"], "task.rewards: names no reward"),
        (["--task.rewards", "lost.py:right"], "task.rewards: there is no file"),
        (["--task.reward_weights", "[.nan]"], "task.reward_weights"),
        (["--task.beta", "0.1", "--peft.method", "lora", "--model.path", "adapter"], "task.beta: .*trained further"),
        (
            ["--task.beta", "0.1", "--peft.method", "lora", "--peft.init_lora_weights", "pissa"],
            "task.beta: .*peft.init_lora_weights pissa takes a part of its weights(.|\n)*true, gaussian or orthogonal",
        ),
        (["--task.reward_weights", "[1.0, 2.0]"], "reward_weights has 2 weights for 1"),
        (["--task.completions", "3"], r"train.global_batch_size: \(8\) .*multiple of task.completions \(3\)"),
        (["--task.completions", "1"], "task.completions"),
        (["--train.micro_batch_size", "auto"], "train.micro_batch_size: auto"),
        (["--eval.best_metric", "loss"], "eval.best_metric: the loss says nothing"),
        (["--eval.predictions", "true"], "eval.predictions: has no effect"),
        (["--train.logits", "chunked"], "train.logits: has no effect"),
        (["--task.epsilon", "0.3"], "task.epsilon: has no effect: .*steps_per_generation is 1"),
        (["--task.replay", "nowhere"], "task.replay: 'nowhere' has no rollouts/"),
        (["--task.beta", "0.1", "--model.init", "random"], "task.beta: the reference"),
        (["--task.rewards_hash", "abc"], "task.rewards_hash: .*have changed"),
        (["--regularization.label_smoothing", "0.1"], "regularization.label_smoothing"),
        (["--regularization.neftune_alpha", "5"], "regularization.neftune_alpha: changes embeddings, and grpo learns"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_heavy_is_imported(
    recipe: Any, overrides: list[str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        recipe(*overrides)


@pytest.mark.parametrize("init", ["true", "gaussian", "orthogonal", "null"])
def test_an_adapter_that_leaves_the_base_as_it_is_has_a_reference(recipe: Any, init: str) -> None:
    recipe("--task.beta", "0.1", "--peft.method", "lora", "--peft.init_lora_weights", init)


def test_a_run_of_another_curve_is_not_replayed(recipe: Any, tmp_path: Path) -> None:
    (tmp_path / "drawn" / "rollouts").mkdir(parents=True)
    for name in ("step-00000001", "step-00000002", "step-00000003", "step-mine"):
        (tmp_path / "drawn" / "rollouts" / f"{name}.jsonl").touch()
    replay = ["--task.replay", "drawn", "--train.micro_batch_size", "2"]
    with pytest.raises(ConfigError, match=r"task.replay: 'drawn' has no config.yaml"):
        recipe(*replay)
    (tmp_path / "drawn" / "config.yaml").write_text(recipe().config)
    assert recipe(*replay).task.replay == "drawn"
    for change in (["--model.path", "other"], ["--task.temperature", "0.5"], ["--optim.lr", "1e-3"]):
        with pytest.raises(ConfigError, match=f"task.replay: 'drawn' holds a run with another {change[0][2:]}"):
            recipe(*replay, *change)
    recipe(*replay, "--optim.lr", "1e-3", "--train.allow_changes", "[optim.lr]")


def test_other_code_of_the_functions_is_another_run(recipe: Any) -> None:
    task = recipe().resolved["task"]
    assert task["rewards"] == ["there/mine.py:right"] and len(task["rewards_hash"]) == 32
    recipe("--task.rewards_hash", task["rewards_hash"])


# Rows


def test_a_prompt_that_leaves_no_room_for_a_completion_is_too_long(tokenizer: Any) -> None:
    task = load_task(TaskSection(name="grpo", max_completion_length=20))
    short = ReadingOf(lambda: tokenizer, 64, positions=64)
    assert task.limit(short).length == 44
    with pytest.raises(ConfigError, match=r"task.max_completion_length: is 20, and the model has 16 positions"):
        task.limit(ReadingOf(lambda: tokenizer, 16, positions=16))
    long = {"prompt": "the fox " * 30}
    with pytest.raises(BadRow, match="cannot be cut"):
        task.encode(long, Survey(), short, truncate=True)


def test_the_functions_columns_travel_with_the_prompt(recipe: Any, tokenizer: Any) -> None:
    task = recipe().task
    (example,) = task.encode({**ROWS[1], "level": 3}, Survey(), reading(tokenizer), truncate=True)
    drawn = Completion([5], [-1.0], 0.1, True, "a fox")
    seen: dict[str, Any] = {}

    def right_of(**told: Any) -> list[float]:
        seen.update(told)
        return [1.0]

    task.rewards = [RewardFunction("m:right", right_of, task.functions[0].columns, frozenset({"completions"}), True)]
    (rewarded,) = task.rewarded([example], [drawn])
    assert rewarded.rewards == {"right": 1.0}
    assert seen["answer"] == ["a fox"] and seen["level"] == [3] and seen["prompts"] == [ROWS[1]["prompt"]]
    assert seen["completions"] == [[{"role": "assistant", "content": "a fox"}]]


def test_a_function_may_ask_for_the_prompt_s_system_and_tools(recipe: Any, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "there" / "mine.py").write_text(
        "def right(completions, system, tools=0): return [len(system[0]) + tools]\n"
    )
    task = recipe().task
    assert [*task.columns] == ["prompt", "system?", "tools?"] and not task.targets
    row = {"prompt": [{"role": "user", "content": "x"}], "system": "be brief"}
    asked = {"asked": task._asked(row)}
    assert task.rewarded([asked], [Completion([5], [-1.0], 0.1, True, "a")])[0].rewards == {"right": 8.0}


def test_a_value_that_cannot_be_kept_is_told(recipe: Any) -> None:
    with pytest.raises(BadRow, match="cannot be kept"):
        recipe().task.check({"prompt": "x", "answer": b"bytes"})
