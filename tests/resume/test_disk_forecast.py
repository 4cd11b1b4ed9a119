"""What a run will write is known before its first step, and what it was trained from is known again."""

import json
import os
import shutil
import subprocess

import pytest

from onecurve.config import ModelSection, OptimSection, Recipe
from onecurve.model.identity import weights_identity
from onecurve.planning.disk_forecast import model_bytes, moments_per_parameter
from tests.export.test_adapter_folder import with_five_labels
from tests.launching import write_recipe
from tests.model.test_pretrained import load

pytestmark = pytest.mark.distributed


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=False).returncode
    ):
        pytest.skip("only root can make a small disk here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize(("how", "ranks"), [("python", 1), pytest.param("zero3", 2, marks=pytest.mark.slow)])
def test_a_run_whose_checkpoints_do_not_fit_is_refused_before_its_first_step(
    forks, recipes, tmp_path, small_disk, how, ranks
):
    saving = ["--checkpoint.every", "1"]
    refused = forks.launch(recipes["causal_lm"], small_disk / "run", how, *saving, num_processes=ranks)
    assert refused.exit_code == 2, refused.stderr
    assert "There is not enough disk space for the run: 2 checkpoints of" in refused.stderr
    assert not (small_disk / "run" / "metrics.jsonl").exists()
    # The forecast is what is really written: the same run, where there is room
    run = forks.train(recipes["causal_lm"], tmp_path / "run", how, *saving, num_processes=ranks)
    folder = run.output_dir / "checkpoints" / "step-00000008"
    written = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    told = float(refused.stderr.partition("checkpoints of ")[2].split()[0]) * 1e6
    assert told == pytest.approx(written, rel=0.02)
    # and a run that writes only its model fits
    forks.train(recipes["causal_lm"], small_disk / "other", how, "--checkpoint.every", "null", num_processes=ranks)


@pytest.mark.slow
def test_what_rollouts_may_record_counts(forks, small_disk, tiny_llama, tmp_path):
    (tmp_path / "mine.py").write_text("def length(completions): return [float(len(text)) for text in completions]\n")
    (tmp_path / "train.jsonl").write_text(json.dumps({"prompt": "what is it?"}) + "\n")
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        output_dir="unused",
        task={"name": "grpo", "rewards": ["mine.py:length"], "completions": 4, "max_completion_length": 16},
        model={"path": str(tiny_llama)},
        data={"train": str(tmp_path / "train.jsonl"), "cache_dir": str(tmp_path / "cache")},
        train={"global_batch_size": 4, "micro_batch_size": 4, "max_steps": 2},
        peft={"method": "lora"},
        checkpoint={"every": None},
    )
    forks.train(recipe, small_disk / "fits")
    refused = forks.launch(recipe, small_disk / "run", "python", "--train.max_steps", "2000")
    assert refused.exit_code == 2, refused.stderr
    assert "and up to 4.8 MB of rollouts" in refused.stderr and "task.max_completion_length" in refused.stderr
    assert not (small_disk / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("section", "moments"),
    [
        (OptimSection(name="adamw"), 2),
        (OptimSection(name="sgd"), 0),
        (OptimSection(name="sgd", momentum=0.9), 1),
        (OptimSection(name="adafactor"), 2 / 256),
    ],
)
def test_what_an_optimizer_keeps_is_read_off_it(section, moments):
    assert moments_per_parameter(section) == moments


def test_an_adapter_does_not_go_on_upon_another_base(forks, recipes, tiny_llama, tmp_path):
    base = shutil.copytree(tiny_llama, tmp_path / "base")
    lora = ["--peft.method", "lora", "--model.path", str(base)]
    forks.train(recipes["causal_lm"], tmp_path / "run", "python", *lora, "--train.stop_after", "2")
    weights = base / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    before = weights_identity(ModelSection(path=str(base)))
    weights.write_bytes(content)
    assert weights_identity(ModelSection(path=str(base))) != before
    refused = forks.launch(recipes["causal_lm"], tmp_path / "run", "python", *lora)
    assert refused.exit_code == 2, refused.stderr
    assert "model.weights was" in refused.stderr


def test_another_micro_batch_size_is_said_on_a_resume(forks, recipes, tmp_path):
    forks.train(recipes["causal_lm"], tmp_path / "run", "python", "--train.stop_after", "2")
    run = forks.train(recipes["causal_lm"], tmp_path / "run", "python", "--train.micro_batch_size", "4")
    assert "train.micro_batch_size was 2 and is 4" in run.stdout


def test_a_base_that_is_saved_beside_its_adapter_is_counted(tiny_bert, tmp_path):
    plain = {"output_dir": "x", "task": {"name": "text_classification"}, "data": {"train": "x"}}
    for base, is_copied in ((tiny_bert, False), (with_five_labels(tiny_bert, tmp_path), True)):
        peft, stored = {"method": "lora"}, (base / "model.safetensors").stat().st_size
        recipe = Recipe.model_validate({**plain, "model": {"path": str(base)}, "train": {"max_steps": 1}, "peft": peft})
        needed = model_bytes(load(base, peft=peft), recipe)
        assert (needed > 0.9 * stored) == is_copied
