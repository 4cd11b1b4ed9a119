"""Reward models say of completions what plain transformers says of them, and what cannot serve as one is refused."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from onecurve.config import Recipe
from onecurve.content.completions import Completion
from onecurve.errors import BetweenUpdates, ConfigError
from onecurve.model.identity import other_identity
from onecurve.preflight import read
from onecurve.rollouts.judges import Judges
from onecurve.tasks._reward_models import RewardModel

COMPLETIONS = [
    Completion([5, 6], [-1.0, -1.0], 0.1, True, text)
    for text in ("a dog, as far as I can tell", "no", "", "the quick brown fox jumps over it", " two spaces")
]
RECIPE = """
output_dir: run
task: {{name: grpo, rewards: [{judge}], completions: 4}}
model: {{path: model}}
data: {{train: train.jsonl}}
train: {{max_steps: 3, global_batch_size: 8, micro_batch_size: 2}}
"""


def saved(tiny: Path, folder: Path, template: bool, labels: int = 1, **told: Any) -> Path:
    """Write a classifier whose scores differ from text to text."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(5)
    model = AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=labels, **told)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    if template:
        tokenizer.chat_template = (
            "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
            "{% if add_generation_prompt %}<assistant>{% endif %}"
        )
    else:
        tokenizer.chat_template = None
    with torch.no_grad():
        for weight in model.parameters():  # upstream starts at 0.02, where every text is scored alike
            weight.mul_(3)
    model.config.pad_token_id = None if template else 7  # as hubs have them: none, or another than the tokenizer's
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def judges_of(folder: Path, size: int = 2) -> Judges:
    recipe = Recipe.model_validate(
        {
            "output_dir": "run",
            "task": {"name": "grpo"},
            "model": {"path": "x"},
            "data": {"train": "x"},
            "train": {"max_steps": 1, "global_batch_size": 8, "micro_batch_size": size},
        }
    )
    return Judges.load({"judge": RewardModel(str(folder)).other}, recipe, Accelerator(cpu=True))


@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_bert"])
def test_scores_are_those_of_plain_transformers(kind: str, template: bool, tmp_path: Path, request: Any) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = saved(request.getfixturevalue(kind), tmp_path / "judge", template)
    rows = [{"prompt": "what is it?", "chosen": one.text} for one in COMPLETIONS]
    scores = [one.rewards["judge"] for one in judges_of(folder).told(rows, COMPLETIONS)]
    one_by_one = [one.rewards["judge"] for one in judges_of(folder, 1).told(rows, COMPLETIONS)]
    assert scores == pytest.approx(one_by_one, abs=1e-5)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for score, row in zip(scores, rows, strict=True):
        if template:
            chat = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["chosen"]}]
            text = tokenizer.apply_chat_template(chat, tokenize=False)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            ids = tokenizer(f"{row['prompt']}\n{row['chosen']}")["input_ids"]
        end = tokenizer.eos_token_id
        ids += [end] if end is not None and ids[-1] != end else []
        with torch.no_grad():
            assert model(input_ids=torch.tensor([ids])).logits.item() == pytest.approx(score, abs=1e-5)
    assert len({round(score, 3) for score in scores}) > 2, "every text is scored alike"


def test_an_adapter_is_a_reward_model_too(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(5)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=1)
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], init_lora_weights=False)
    model = get_peft_model(base, config).eval()
    folder = tmp_path / "runs" / "mine" / "model"
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    tokenizer.save_pretrained(folder)
    RewardModel(str(tmp_path / "runs" / "mine")).check()
    (one,) = judges_of(tmp_path / "runs" / "mine").told([{"prompt": "a dog", "chosen": "no"}], COMPLETIONS[1:2])
    with torch.no_grad():
        score = model(**tokenizer("a dog\nno", return_tensors="pt")).logits.item()
    assert one.rewards["judge"] == pytest.approx(score, abs=1e-5)
    assert other_identity(RewardModel(str(folder)).other)


def test_what_it_was_rewarded_with_before_stays(tiny_bert: Path, tmp_path: Path) -> None:
    (one,) = judges_of(saved(tiny_bert, tmp_path / "judge", False)).told(
        [{"prompt": "a", "chosen": "b"}], [replace(COMPLETIONS[0], rewards={"length": 3.0})]
    )
    assert list(one.rewards) == ["length", "judge"] and one.rewards["length"] == 3.0


def test_an_answer_that_it_cannot_read_whole_ends_the_run(tiny_bert: Path, tmp_path: Path) -> None:
    judges = judges_of(saved(tiny_bert, tmp_path / "judge", False))
    rows = [{"prompt": "a", "chosen": "the dog " * 600}]
    with pytest.raises(BetweenUpdates, match=r"judge reads \d+ tokens, and the completion 'the dog .* has \d+ with"):
        judges.told(rows, COMPLETIONS[:1])


@pytest.fixture
def recipe(tiny_llama: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    saved(tiny_bert, tmp_path / "runs" / "mine" / "model", False)

    def checked(judge: str, *overrides: str) -> Any:
        (tmp_path / "recipe.yaml").write_text(RECIPE.format(judge=judge))
        return read(["recipe.yaml", *overrides])

    return SimpleNamespace(read=checked, folder=tmp_path, bert=tiny_bert, llama=tiny_llama)


def test_models_and_functions_are_rewards_side_by_side(recipe: Any) -> None:
    (recipe.folder / "my.py").write_text("def short(completions, most): return [0.0] * len(completions)\n")
    task = recipe.read("runs/mine, my.py:short", "--task.reward_weights", "[1.0, 0.1]").task
    assert task.reward_names == ["mine", "short"] and [*task.reward_models] == ["mine"]
    assert [*task.columns] == ["prompt", "system?", "tools?", "most"]
    asked = {"prompt": [{"role": "user", "content": "x"}], "system": "be brief", "most": 3}
    example = {"asked": task._asked(asked)}
    (row,) = task.judged([example], [COMPLETIONS[1]])
    assert row == {"prompt": asked["prompt"], "system": "be brief", "chosen": "no"}
    (rewarded,) = task.rewarded([example], [replace(COMPLETIONS[1], rewards={"mine": 2.0})])
    assert rewarded.rewards == {"mine": 2.0, "short": 0.0}
    assert recipe.read("runs/mine/model").task.reward_names == ["mine"]


def test_a_run_is_not_resumed_with_another_reward_model(recipe: Any) -> None:
    before = recipe.read("runs/mine").task.settings.rewards_hash
    assert recipe.read("runs/mine").task.settings.rewards_hash == before
    saved(recipe.bert, recipe.folder / "runs" / "mine" / "model", False, initializer_range=0.5)
    assert recipe.read("runs/mine").task.settings.rewards_hash != before
    with pytest.raises(ConfigError, match=r"task.rewards_hash: .*weights or config of a reward model, have changed"):
        recipe.read("runs/mine", "--task.rewards_hash", before)


def test_what_is_no_reward_model_is_refused_before_weights_load(recipe: Any) -> None:
    saved(recipe.bert, recipe.folder / "two", False, labels=2)
    for judge, said in (
        ("two/", "'two/' has 2 outputs; a reward model has one"),
        ("runs/lost", "no such folder: 'runs/lost'|config.json of 'runs/lost' cannot be read"),
        ("length", "'length' is neither a function nor a model"),
        ("my.py", "'my.py' names no class|there is no file"),
        ("runs/mine, ./runs/mine", "two rewards are called 'mine'"),
    ):
        with pytest.raises(ConfigError, match=said) as refused:
            recipe.read(judge)
        assert refused.value.where == "task.rewards"


def test_a_model_of_another_task_is_refused(recipe: Any) -> None:
    folder = recipe.folder / "runs" / "mine" / "model"
    task = {"version": 1, "name": "text_classification", "settings": {}, "columns": {}, "max_length": 64}
    survey = {"labels": ["x"]}
    (folder / "task.json").write_text(json.dumps({**task, "survey": survey}))
    with pytest.raises(ConfigError, match="was trained for text_classification; it cannot be asked as reward"):
        judges_of(folder)


def test_its_identity_is_that_of_its_weights(recipe: Any) -> None:
    assert other_identity(RewardModel("runs/mine").other) == other_identity(RewardModel("runs/mine/model").other)
