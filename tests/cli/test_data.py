"""`onecurve data stage`: what a run needs is fetched and encoded before it, and the run then needs no network."""

import json
import shutil
import subprocess
import sys

import pytest

from tests.launching import ROOT, environment, train, write_recipe
from tests.local_hub import serving
from tests.tiny_models import build_tiny_bert

STAGE = [sys.executable, "-m", "onecurve", "data", "stage"]
ROWS = [{"text": f"headline {i}", "label": ("up", "down")[i % 2]} for i in range(20)]


def write_rows(path):
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def recipe(tmp_path, tiny_bert):
    return write_recipe(
        tmp_path / "recipe.yaml",
        output_dir=str(tmp_path / "unused"),
        task={"name": "text_classification"},
        model={"path": str(tiny_bert)},
        data={"train": str(write_rows(tmp_path / "data.jsonl")), "cache_dir": str(tmp_path / "cache")},
        train={"max_steps": 2, "global_batch_size": 4, "micro_batch_size": 4},
    )


def stage(recipe, *overrides, **variables):
    words = [*STAGE, str(recipe), *map(str, overrides)]
    settings = environment() | variables
    return subprocess.run(words, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=300, check=False)


def test_local_files_are_encoded_once_and_the_run_reads_them_from_the_cache(recipe, tmp_path, tiny_bert):
    first, again = stage(recipe), stage(recipe)
    assert first.returncode == again.returncode == 0, first.stderr
    assert f"model: found {tiny_bert}" in first.stdout
    assert "train: 20 examples, " in first.stdout
    assert f"examples: encoded in {tmp_path / 'cache'}" in first.stdout
    assert f"examples: all found in {tmp_path / 'cache'}" in again.stdout
    assert not (tmp_path / "unused").exists()
    assert "read from the cache" in train(recipe, tmp_path / "run").stdout
    folders = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    (examples,) = (path for path in folders if not path.name.startswith("rows-"))
    assert len(folders) == 2, "what is known of the rows, and the examples"
    shutil.rmtree(examples)
    assert "read from the cache" not in train(recipe, tmp_path / "other").stdout


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (["--model.path", "nosuch/model"], "'nosuch/model' is not in the local cache, and the hub cannot be reached"),
        (["--model.path", "./nosuch"], "'./nosuch' is neither a folder nor a hub name"),
        (["--data.train", "nosuch/data"], "data.train: no such file or folder: 'nosuch/data', and no hub dataset of"),
        (["--data.trian", "x"], "Did you mean 'data.train'?"),
    ],
)
@pytest.mark.parametrize("offline", ["0", "1"])
def test_what_cannot_be_had_is_one_message(recipe, override, said, offline):
    nobody = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": offline}
    ended = stage(recipe, *override, **nobody)
    assert ended.returncode == 2
    (line,) = ended.stderr.strip().splitlines()
    assert line.startswith("onecurve data: ")
    assert said in line


@pytest.mark.slow
def test_from_a_hub_to_a_run_without_one(tmp_path, monkeypatch):
    model, data = build_tiny_bert(tmp_path / "model"), tmp_path / "data"
    (model / "pytorch_model.bin").write_bytes(b"never asked for")
    (model / "onnx").mkdir()
    (model / "onnx" / "model.safetensors").write_bytes(b"never asked for")
    data.mkdir()
    for split in ("train", "validation"):
        write_rows(data / f"{split}.jsonl")
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        output_dir="unused",
        task={"name": "text_classification"},
        model={"path": "org/tiny"},
        data={"train": "org/rows", "eval": "org/rows", "cache_dir": str(tmp_path / "cache")},
        train={"max_steps": 2, "global_batch_size": 4, "micro_batch_size": 4},
    )
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with serving({"models/org/tiny": model, "datasets/org/rows": data}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        staged = stage(recipe)
        assert staged.returncode == 0, staged.stderr
        assert "model: fetched org/tiny in " in staged.stdout
        assert "train: 20 examples" in staged.stdout
        assert {"config.json", "tokenizer.json", "model.safetensors", "train.jsonl"} <= set(hub.asked)
        assert "pytorch_model.bin" not in hub.asked
        assert hub.asked.count("model.safetensors") == 1
        absent = stage(recipe, "--model.path", "org/absent")
        assert (absent.returncode, "the model 'org/absent' cannot be fetched: " in absent.stderr) == (2, True)
    for offline in ("1", "0"):  # asked for, and found out
        monkeypatch.setenv("HF_HUB_OFFLINE", offline)
        run = train(recipe, tmp_path / offline)
        assert "read from the cache" in run.stdout
        assert run.status["status"] == "done"
    found = stage(recipe)
    assert "model: found org/tiny in " in found.stdout
