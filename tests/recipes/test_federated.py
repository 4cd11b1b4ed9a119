"""recipes/federated: how rows are shared out, what is refused, and the whole chain: only adapters travel."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from onecurve.errors import ConfigError
from recipes.federated.run import federate
from recipes.federated.split import split, write_sites
from recipes.rounds import write_rows
from tests.launching import ROOT, environment

FOLDER = ROOT / "recipes" / "federated"
FACTORS = "adapter_model.safetensors"
LABELS = ["up"] * 60 + ["down"] * 40


def unequal(alpha):
    sites = split(LABELS, 4, alpha, 0)
    shares = [sum(LABELS[row] == "up" for row in site) / len(site) for site in sites if site]
    return max(shares) - min(shares)


def test_each_row_goes_to_one_site_by_a_keyed_draw():
    sites = split(LABELS, 4, 0.5, 0)
    assert sorted(row for site in sites for row in site) == [*range(100)]
    assert sites == split(LABELS, 4, 0.5, 0) != split(LABELS, 4, 0.5, 1)
    assert unequal(0.1) > 0.8 > 0.1 > unequal(1000)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('  freeze: ["*lora_A*"]', '  freeze: ["*lora_B*"]', "regularization.freeze: does not have '*lora_A*'"),
        ("  labels: [negative, neutral, positive]", "", "task.labels: is not set"),
        ("  method: lora\n  r: 8\n  lora_alpha: 16", "  method: ia3", "peft.method: is not lora"),
    ],
    ids=["A", "labels", "method"],
)
def test_what_cannot_be_averaged_is_said_before_anything_is_trained(tmp_path, before, after, said):
    text = (FOLDER / "recipe.yaml").read_text()
    assert before in text
    (tmp_path / "recipe.yaml").write_text(text.replace(before, after))
    with pytest.raises(ConfigError) as refused:
        federate(tmp_path / "recipe.yaml", [tmp_path / "a.jsonl"], tmp_path)
    assert said in str(refused.value)


def test_rows_without_a_label_and_sites_without_rows_are_refused(tmp_path):
    write_rows(tmp_path / "rows.jsonl", [{"text": "a", "label": "up"}, {"text": "b"}])
    with pytest.raises(ConfigError, match="row 2 has no 'label'"):
        write_sites(tmp_path / "rows.jsonl", tmp_path / "sites", 2, 1, 0)
    write_rows(tmp_path / "rows.jsonl", [{"text": "a", "label": "up"}])
    with pytest.raises(ConfigError, match=r"site \d of 2 would have no rows. Take another --seed"):
        write_sites(tmp_path / "rows.jsonl", tmp_path / "sites", 2, 1, 0)


@pytest.mark.slow
def test_sites_train_in_rounds_and_share_a(tmp_path):
    def run(*words):
        done = subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=1800,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("train.py", FOLDER / "base.yaml", "--output_dir", tmp_path / "base")
    words = ["--column", "mood", "--num_sites", 2, "--output_dir", tmp_path / "sites"]
    told = run("-m", "recipes.federated.split", "recipes/active_learning/pool.jsonl", *words)
    assert "site-2.jsonl: " in told
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text((FOLDER / "recipe.yaml").read_text().replace("runs/federated/base", str(tmp_path / "base")))
    sites = [tmp_path / "sites" / f"site-{number}.jsonl" for number in (1, 2)]
    told = run(
        "-m", "recipes.federated.run", recipe, "--sites", *sites, "--rounds", 2, "--output_dir", tmp_path / "run"
    )
    assert told.count("all adapters share A, so the mean of B is exact") == 2
    rows = [len(site.read_text().splitlines()) for site in sites]
    rounds = [tmp_path / "run" / f"round-{number}" for number in (1, 2)]
    first = load_file(rounds[0] / "site-1" / "model" / "adapter_model.safetensors")
    for folder in rounds:
        mean, one, two = (
            load_file(folder / name / "adapter_model.safetensors")
            for name in ("average", "site-1/model", "site-2/model")
        )
        assert mean.keys() == first.keys() and any("classifier" in name for name in mean)
        for name, value in mean.items():
            if "lora_A" in name:
                assert torch.equal(value, first[name]), f"{name} was trained"
            else:
                assert not torch.equal(one[name], two[name])
                expected = (rows[0] * one[name] + rows[1] * two[name]) / sum(rows)
                assert torch.allclose(value, expected, atol=1e-6), name
    begun = json.loads((rounds[1] / "average" / "adapter_config.json").read_text())
    assert begun["r"] == 8 and begun["base_model_name_or_path"].startswith(str(tmp_path / "base"))
    assert f"path: {rounds[0] / 'average'}" in (rounds[1] / "site-2" / "config.yaml").read_text()
