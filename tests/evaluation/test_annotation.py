"""What a frozen reference says of each example: once, before step 1, the same on every rank and after a resume."""

import json
import shutil
from collections.abc import Callable
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

from onecurve.data.cache import find_entry
from onecurve.data.examples import Examples, write_examples
from onecurve.data.splits import Split
from onecurve.evaluation.annotation import FOLDER, _Store
from onecurve.model.identity import other_identity
from onecurve.tasks.base import OtherModel
from tests.launching import launch, train, write_recipe
from tests.parity.test_strategies_draw_one_curve import TOLERANCE
from tests.tiny_models import build_tiny_llama

WORDS = ["a dog", "no", "the answer is plain", "nothing at all", "yes", "what do you think of it"]
PAIRS = [
    {"prompt": f"what is {number}?", "chosen": f"{WORDS[number % 6]} {number}", "rejected": WORDS[(number * 5 + 1) % 6]}
    for number in range(13)
]
LORA = ["--peft.method", "lora", "--peft.target_modules", "[q_proj, v_proj]"]
DROPS_NOTHING = ["--regularization.dropout", "0"]
PROMPTS = ["--peft.method", "prompt_tuning", "--peft.num_virtual_tokens", "4"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    build_tiny_llama(folder / "llama")
    build_tiny_llama(folder / "other", seed=1)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    (folder / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS[:5]))
    return write_recipe(
        folder / "recipe.yaml",
        output_dir="unused",
        task={"name": "dpo"},
        model={"path": str(folder / "llama")},
        data={
            "train": str(folder / "train.jsonl"),
            "eval": str(folder / "dev.jsonl"),
            "cache_dir": str(folder / "cache"),
            "max_length": 128,
        },
        optim={"lr": 1e-2},
        train={"max_steps": 3, "global_batch_size": 4, "micro_batch_size": 2, "mixed_precision": "no"},
    )


def said(run: Any) -> dict[str, list[list[float]]]:
    """What the reference of a run said, by the number of examples of the split."""
    found = {}
    for folder in sorted((run / FOLDER).iterdir()):
        if folder.is_dir():
            examples = Examples(folder)
            found[len(examples)] = [examples[number]["reference_logps"] for number in range(len(examples))]
    return found


def plain_logps(model_folder: Path, changed: Callable[[Any], Any] = lambda model: model) -> list[list[float]]:
    """What plain transformers says of the chosen and the rejected answer of each pair."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = changed(AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)).eval()

    def logp(prompt: str, answer: str) -> float:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        start = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(turns, tokenize=False).removesuffix("\n")
        ids, skipped = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (whole, start))
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        tokens = logits.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
        return float(tokens[len(skipped) - 1 :].sum())

    return [[logp(row["prompt"], row[side]) for side in ("chosen", "rejected")] for row in PAIRS]


def test_a_split_hands_out_what_was_said_with_each_example(tmp_path: Path) -> None:
    for name, rows in (("examples", [{"a": 1}, {"a": 2}]), ("said", [{"b": [0.1, 0.2]}, {"b": [0.3, 0.4]}])):
        (tmp_path / name).mkdir()
        write_examples(tmp_path / name, rows, lambda _: (0, 0))
    report: Any = None
    split = Split("train", report, Examples(tmp_path / "examples"), annotations=Examples(tmp_path / "said"))
    assert split[1] == {"a": 2, "b": [0.3, 0.4]}
    assert split.take([1, 0]) == [{"a": 2, "b": [0.3, 0.4]}, {"a": 1, "b": [0.1, 0.2]}]


def test_what_is_kept_is_taken_from_the_run_before_the_cache_and_never_if_it_was_altered(tmp_path: Path) -> None:
    store = _Store(tmp_path / "run", None, tmp_path / "cache")
    assert not store.take("key")
    store.keep("key", [{"b": [0.5]}], {"task": "t"})
    assert store.take("key")
    shutil.rmtree(tmp_path / "cache")
    assert store.take("key")  # the run's own copy is enough
    elsewhere = _Store(tmp_path / "second", tmp_path / "run", tmp_path / "none")
    assert elsewhere.take("key")
    assert Examples(tmp_path / "second" / "key")[0] == {"b": [0.5]}
    (arrow,) = (tmp_path / "second" / "key").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:-9])
    assert find_entry(tmp_path / "second", "key") is None
    assert not _Store(tmp_path / "second", None, tmp_path / "none").take("key")


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(("overrides", "others"), [([], ["ddp", "zero2", "zero3"]), (LORA, ["ddp", "zero3"])])
def test_the_base_is_the_reference_and_every_strategy_draws_one_curve(
    recipe: Path, tmp_path: Path, overrides: list[str], others: list[str]
) -> None:
    one = train(recipe, tmp_path / "one", "python", *overrides)
    expected = plain_logps(recipe.parent / "llama")
    assert np.allclose(said(tmp_path / "one")[13], expected, rtol=0, atol=1e-4)
    curve = one.events("train")
    still = train(recipe, tmp_path / "still", "python", *overrides, *DROPS_NOTHING, "--train.max_steps", "1")
    assert still.events("train")[0]["loss"] == pytest.approx(log(2), abs=1e-5)  # nothing is preferred before step 1
    assert curve[-1]["loss"] != pytest.approx(curve[0]["loss"], abs=1e-4), "nothing trained"
    for how in others:
        fresh = ["--data.cache_dir", str(tmp_path / f"cache-{how}")]  # so that this strategy computes them itself
        other = train(recipe, tmp_path / how, how, *overrides, *fresh)
        assert np.allclose(said(tmp_path / how)[13], said(tmp_path / "one")[13], rtol=0, atol=1e-4)
        for ours, theirs in zip(curve, other.events("train"), strict=True):
            assert theirs["sample_digest"] == ours["sample_digest"]
            assert theirs["loss"] == pytest.approx(ours["loss"], rel=TOLERANCE), (how, ours["step"])
            assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=5 * TOLERANCE), (how, ours["step"])


@pytest.mark.slow
def test_an_adapter_that_does_not_start_at_the_base_is_switched_off(recipe: Path, tmp_path: Path) -> None:
    train(recipe, tmp_path / "run", "python", *PROMPTS, "--train.max_steps", "1")
    assert np.allclose(said(tmp_path / "run")[13], plain_logps(recipe.parent / "llama"), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_adapter_that_takes_a_part_out_of_the_base_is_not_switched_off(
    recipe: Path, tmp_path: Path, forks: Any, init: str
) -> None:
    from peft import LoraConfig, get_peft_model

    folder = build_tiny_llama(tmp_path / "llama", initializer_range=0.3)

    def without_what_was_taken(model: Any) -> Any:
        config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], init_lora_weights=init)
        return get_peft_model(model, config).unload()  # leaves the base as the adapter's beginning has made it

    model = ["--model.path", str(folder), *LORA, "--peft.init_lora_weights", init, "--train.max_steps", "1"]
    forks.train(recipe, tmp_path / "run", "python", *model)
    assert np.allclose(said(tmp_path / "run")[13], plain_logps(folder), rtol=0, atol=2e-3)
    assert not np.allclose(plain_logps(folder, without_what_was_taken), plain_logps(folder), rtol=0, atol=0.1)


def test_another_model_is_known_by_its_weights_and_its_config(tiny_llama: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    other = shutil.copytree(tiny_llama, tmp_path / "other")
    adapter = tmp_path / "adapter"
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    get_peft_model(AutoModelForCausalLM.from_pretrained(other), config).save_pretrained(adapter)

    def identities() -> list[str]:
        return [other_identity(OtherModel(str(folder), None, "task.teacher")) for folder in (other, adapter)]

    def change(folder: Path, name: str, **values: Any) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | values))

    before = identities()
    change(other, "config.json", transformers_version="9.9.9", use_cache=False, dtype="bfloat16")
    assert identities() == before
    change(other, "config.json", rms_norm_eps=0.5)
    changed = identities()
    assert changed[0] != before[0] and changed[1] != before[1]
    change(adapter, "adapter_config.json", lora_alpha=64)
    assert identities()[0] == changed[0] and identities()[1] != changed[1]


def test_another_model_of_the_hub_is_known_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = tmp_path / "models--some--teacher"
    (cached / "snapshots" / "abc123").mkdir(parents=True)
    (cached / "snapshots" / "abc123" / "config.json").write_text("{}")  # its weights are not here yet
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert other_identity(OtherModel("some/teacher", None, "task.teacher")) == "some/teacher@abc123"


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("how", ["python", "zero3"])
def test_another_model_is_the_reference_that_the_recipe_names(recipe: Path, tmp_path: Path, how: str) -> None:
    named = ["--task.reference", str(recipe.parent / "other"), "--data.cache_dir", str(tmp_path / "cache")]
    train(recipe, tmp_path / "run", how, *named, "--train.max_steps", "1")
    assert np.allclose(said(tmp_path / "run")[13], plain_logps(recipe.parent / "other"), rtol=0, atol=1e-4)
    assert not np.allclose(said(tmp_path / "run")[13], plain_logps(recipe.parent / "llama"), rtol=0, atol=1e-2)


@pytest.mark.slow
@pytest.mark.distributed
def test_named_sources_and_sets_are_annotated_each_and_every_cut_draws_one_curve(recipe: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    for file, rows in ((first, PAIRS[:6]), (second, PAIRS[6:])):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sections = YAML().load(recipe.read_text())
    sections["data"]["train"] = {
        "first": {"path": str(first), "weight": 1},
        "second": {"path": str(second), "weight": 3},
    }
    sections["data"]["eval"] = {"first": str(first), "all": str(recipe.parent / "train.jsonl")}
    mixed = write_recipe(tmp_path / "mixed.yaml", **sections)
    one = train(mixed, tmp_path / "one", "python")
    expected = plain_logps(recipe.parent / "llama")
    found = said(tmp_path / "one")
    assert np.allclose(found[6], expected[:6], rtol=0, atol=1e-4)
    assert np.allclose(found[7], expected[6:], rtol=0, atol=1e-4)
    assert np.allclose(found[13], expected, rtol=0, atol=1e-4)
    other = train(mixed, tmp_path / "ddp", "ddp")
    for kind, name in (("train", "loss"), ("train", "grad_norm"), ("eval", "first/loss"), ("eval", "all/loss")):
        ours, theirs = ([event[name] for event in run.events(kind)] for run in (one, other))
        assert ours and theirs == pytest.approx(ours, rel=5 * TOLERANCE), name


@pytest.mark.slow
def test_a_resumed_run_reads_what_the_first_launch_was_told(recipe: Path, tmp_path: Path) -> None:
    whole = train(recipe, tmp_path / "whole", "python")
    train(recipe, tmp_path / "parts", "python", "--checkpoint.every", "1", "--train.stop_after", "1")
    (tmp_path / "parts").rename(tmp_path / "moved")
    fresh = ["--data.cache_dir", str(tmp_path / "elsewhere")]
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "moved" / FOLDER).rglob("*.arrow")}
    parts = train(recipe, tmp_path / "moved", "python", "--checkpoint.every", "1", *fresh)
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "moved" / FOLDER).rglob("*.arrow")}
    for name in ("loss", "grad_norm"):
        assert [step[name] for step in parts.events("train")] == [step[name] for step in whole.events("train")]


@pytest.mark.slow
def test_a_run_does_not_go_on_with_another_reference(recipe: Path, tmp_path: Path) -> None:
    train(recipe, tmp_path / "run", "python", "--checkpoint.every", "1", "--train.stop_after", "1")
    model = tmp_path / "changed"
    shutil.copytree(recipe.parent / "other", model)
    done = launch(
        recipe,
        tmp_path / "run",
        "python",
        "--checkpoint.every",
        "1",
        "--model.path",
        str(model),
        "--train.allow_changes",
        "[model.path]",
    )
    assert done.exit_code == 2
    assert "reference" in done.stderr
