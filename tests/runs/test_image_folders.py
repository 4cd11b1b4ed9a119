"""A folder of images a label, trained on as a user would, and read by plain transformers in another process."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launching import environment, write_recipe
from tests.tiny_vision import IMAGES

FRESH = """
import json, sys
from transformers import pipeline
classify = pipeline("image-classification", sys.argv[1])
print(json.dumps({found["label"]: found["score"] for found in classify(sys.argv[2])}))
"""


@pytest.fixture
def recipe(tmp_path: Path, tiny_vit: Path) -> Path:
    for number, image in enumerate(IMAGES):
        for copy in range(3):
            place = tmp_path / "photos" / ("cat" if number % 2 else "dog") / f"{number}-{copy}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(image["path"], place)
    return write_recipe(
        tmp_path / "recipe.yaml",
        output_dir="unused",
        task={"name": "image_classification"},
        model={"path": str(tiny_vit)},
        data={"train": str(tmp_path / "photos"), "cache_dir": str(tmp_path / "cache")},
        optim={"lr": 1e-2},
        train={"max_steps": 4, "global_batch_size": 6, "micro_batch_size": 3},
    )


@pytest.mark.slow
@pytest.mark.parametrize("how", [[], ["--peft.method", "lora"]], ids=["full", "lora"])
def test_a_fresh_process_classifies_as_onecurve_does(forks, recipe, tmp_path, capsys, how):
    from onecurve.cli import main

    run = forks.train(recipe, tmp_path / "run", "python", *how)
    model, image = run.output_dir / "model", IMAGES[0]["path"]
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(model), image], env=environment(), capture_output=True, text=True, check=True
    )
    theirs = json.loads(done.stdout)
    capsys.readouterr()
    assert main(["predict", str(model), image, "--json"]) == 0
    ours = json.loads(capsys.readouterr().out)["probabilities"]
    assert theirs.keys() == {"cat", "dog"}
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert f'pipeline("image-classification", "{model}")' in (model / "README.md").read_text()


@pytest.mark.slow
def test_a_file_that_is_no_image_ends_the_run_or_is_counted(forks, recipe, tmp_path):
    broken = tmp_path / "photos" / "cat" / "broken.png"
    broken.write_bytes(Path(IMAGES[0]["path"]).read_bytes()[:100])
    refused = forks.launch(recipe, tmp_path / "refused", "python")
    assert refused.exit_code == 2
    assert "cat/broken.png" in refused.stderr and "the file is truncated" in refused.stderr
    skipped = forks.train(recipe, tmp_path / "skipped", "python", "--data.on_bad_row", "skip")
    assert "1 bad row skipped" in skipped.stdout
