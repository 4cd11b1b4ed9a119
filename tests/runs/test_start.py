"""What a run has imported when it takes its first step: nothing that it does not use."""

import json
import subprocess
import sys

import pytest

from tests.launching import ROOT, environment, write_recipe

# Stands in for what the first step begins with, and tells what is there
LISTS_MODULES = """
import json, runpy, sys
import onecurve.optim
def tell(*_):
    print(json.dumps(sorted({name.partition(".")[0] for name, module in sys.modules.items() if module})))
    raise KeyboardInterrupt
onecurve.optim.lr_at = tell
sys.path.insert(0, "")
runpy.run_path("train.py", run_name="__main__")
"""
UNUSED = {"deepspeed", "evaluate", "datasets", "pandas", "sklearn", "tensorboard", "scipy", "bitsandbytes", "torchao"}


@pytest.fixture(scope="module")
def imported_by(tiny_bert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    rows = [{"text": "profit rises", "label": "up"}, {"text": "profit falls", "label": "down"}]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = write_recipe(
        folder / "recipe.yaml",
        output_dir=str(folder / "run"),
        task={"name": "text_classification"},
        model={"path": str(tiny_bert)},
        data={"train": str(folder / "train.jsonl"), "cache_dir": str(folder / "cache")},
        train={"max_steps": 2, "global_batch_size": 2, "micro_batch_size": 2, "resume": "never"},
    )

    def imported(*overrides):
        words = [sys.executable, "-c", LISTS_MODULES, str(recipe), *overrides]
        ran = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120)
        listed = [line for line in ran.stdout.splitlines() if line.startswith("[")]
        assert listed, ran.stdout + ran.stderr
        return set(json.loads(listed[0]))

    return imported


def test_a_full_run_starts_without_what_it_does_not_use(imported_by):
    for how in ("encoding", "from the cache"):
        imported = imported_by()
        assert "transformers" in imported
        assert not imported & {*UNUSED, "peft"}, how


@pytest.mark.slow
def test_peft_is_there_where_the_recipe_asks_for_it(imported_by):
    imported = imported_by("--peft.method=lora")
    assert "peft" in imported
    assert not imported & UNUSED


@pytest.mark.slow
def test_bitsandbytes_is_there_where_the_recipe_asks_for_it(imported_by):
    pytest.importorskip("bitsandbytes")
    assert "bitsandbytes" in imported_by("--peft.method=lora", "--model.quantization=nf4")
