"""Models that read sounds draw one curve under every strategy: frozen convolutions, masks, a head for new letters."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import Wav2Vec2ForPreTraining

from tests.launching import write_recipe
from tests.parity.test_strategies_draw_one_curve import TOLERANCE, compare_weights
from tests.tiny_sounds import build_tiny_wav2vec2, encoded, tone

pytestmark = pytest.mark.distributed

STEPS = 3
LORA = ["--peft.method", "lora", "--peft.target_modules", "[q_proj, v_proj]"]
REST = [("speech_recognition", LORA), ("audio_classification", []), ("audio_classification", LORA)]
READ = """
import sys, soundfile, torch
from transformers import AutoModelForCTC, AutoProcessor
model, processor = AutoModelForCTC.from_pretrained(sys.argv[1]), AutoProcessor.from_pretrained(sys.argv[1])
samples, rate = soundfile.read(sys.argv[2], dtype="float32")
with torch.no_grad():
    logits = model.eval()(**processor(samples, sampling_rate=rate, return_tensors="pt")).logits
print(repr(processor.batch_decode(logits.argmax(-1))[0]))
"""


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    rows = []
    for number in range(10):
        (folder / f"{number}.flac").write_bytes(
            encoded(tone(300 + 200 * (number % 2), 0.3 + 0.05 * number), kind="FLAC")
        )
        rows.append({"audio": f"{number}.flac", "label": number % 2, "text": ["a", "ba b"][number % 2]})
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shape = {"num_codevectors_per_group": 8, "codevector_dim": 16, "proj_codevector_dim": 16, "layerdrop": 0.1}
    model = build_tiny_wav2vec2(folder / "base", weights=Wav2Vec2ForPreTraining, mask_feature_prob=0.2, **shape)

    def write(name, **settings):
        return write_recipe(
            folder / f"{name}.yaml",
            output_dir="unused",
            seed=3,
            task={"name": name, "spec_augment": {"time_prob": 0.3, "time_length": 2, "feature_prob": 0.2}, **settings},
            model={"path": str(model)},
            data={"train": str(folder / "data.jsonl"), "cache_dir": str(folder / "cache")},
            optim={"lr": 1e-2, "weight_decay": 0.1, "max_grad_norm": 0.3},
            train={"max_steps": STEPS, "global_batch_size": 4, "micro_batch_size": 2},
        )

    return {
        "audio_classification": write("audio_classification"),
        "speech_recognition": write("speech_recognition", vocabulary="ab"),
    }


def check(forks, recipe, folder, overrides, strategies):
    one = forks.train(recipe, folder / "one", "python", *overrides)
    curve = one.events("train")
    assert len({step["loss"] for step in curve}) == STEPS, "nothing trained"
    for how in strategies:
        other = forks.train(recipe, folder / how, how, *overrides)
        for ours, theirs in zip(curve, other.events("train"), strict=True):
            assert ours["sample_digest"] == theirs["sample_digest"]
            assert theirs["loss"] == pytest.approx(ours["loss"], rel=TOLERANCE), (how, ours["step"])
            assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=5 * TOLERANCE), (how, ours["step"])
        compare_weights(one.output_dir / "model", other.output_dir / "model")
    return one


@pytest.mark.slow
def test_speech_under_every_strategy_and_read_by_plain_transformers(forks, recipes, tmp_path):
    recipe = recipes["speech_recognition"]
    one = check(forks, recipe, tmp_path, [], ["zero3", "ddp", "zero2"])
    for told in (
        "layerdrop 0.1 in the model's config",
        "are frozen",
        "mask_feature_prob is 0",
        "lm_head.weight [7, 32]",
    ):
        assert told in one.stdout, told
    base = load_file(recipe.parent / "base" / "model.safetensors")
    for how in ("one", "zero3"):
        model = load_file(tmp_path / how / "model" / "model.safetensors")
        front = [name for name in model if ".feature_extractor." in name]
        assert front and all(torch.equal(model[name], base[name]) for name in front)
        assert not torch.equal(model["wav2vec2.masked_spec_embed"], base["wav2vec2.masked_spec_embed"])
    heard = recipe.parent / "1.flac"
    words = [sys.executable, "-c", READ, str(tmp_path / "zero3" / "model"), str(heard)]
    plain = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    words = [sys.executable, "-m", "onecurve", "predict", str(tmp_path / "one" / "model"), str(heard)]
    ours = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    assert repr(ours[-1] if ours else "") == plain


@pytest.mark.slow
@pytest.mark.parametrize(("task", "overrides"), REST)
def test_the_others_too(forks, recipes, tmp_path, task, overrides):
    check(forks, recipes[task], tmp_path, overrides, ["ddp", "zero3"])
