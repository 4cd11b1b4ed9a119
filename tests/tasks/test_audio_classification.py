import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForAudioClassification,
    WhisperConfig,
    WhisperFeatureExtractor,
)

from onecurve.config import TaskSection
from onecurve.content.survey import Survey
from onecurve.errors import BadRow, ConfigError, DataError
from onecurve.tasks import load_task
from onecurve.tasks.audio_classification import Task
from tests.readings import ReadingOf
from tests.tasks.contract import Case
from tests.tiny_sounds import build_tiny_ast, build_tiny_wav2vec2, clip, encoded, tone


def _oracle(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**{name: value for name, value in batch.items() if not name.startswith("mask_")}).loss


def _rows(folder: Path) -> list[dict[str, Any]]:
    for number in range(4):
        (folder / f"{number}.wav").write_bytes(encoded(tone(300 * (1 + number % 2), 0.3 + 0.1 * number)))
    return [{"audio": f"{number}.wav", "label": ["low", "high"][number % 2]} for number in range(4)]


CASES = {
    "sounds": Case(_rows, model="tiny_wav2vec2", nats_per_item=math.log(2), oracle=_oracle),
    "spectrograms": Case(_rows, model="tiny_ast", nats_per_item=math.log(2), oracle=_oracle),
}


def task_of(**settings: Any) -> Task:
    return load_task(TaskSection(name="audio_classification", **settings))


def whisper(folder: Path) -> Path:
    shape = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64}
    shape |= {"decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 64, "num_mel_bins": 16}
    WhisperConfig(**shape, max_source_positions=100, classifier_proj_size=16).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=16, chunk_length=2).save_pretrained(folder)
    return folder


MODELS = {"wav2vec2": build_tiny_wav2vec2, "ast": build_tiny_ast, "whisper": whisper}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    sounds = tmp_path_factory.mktemp("sounds")
    waves = [tone(300, 0.3), tone(600, 0.5, 8000), tone(900, 0.7)]
    rates = [16000, 8000, 16000]
    return [
        {"audio": clip(sounds / f"{label}.wav", wave, rate), "label": label}
        for label, wave, rate in zip("abc", waves, rates, strict=True)
    ]


@pytest.mark.parametrize("kind", MODELS)
def test_the_loss_is_that_of_transformers(kind: str, tmp_path: Path, rows: list[Any]) -> None:
    folder, task = MODELS[kind](tmp_path), task_of()
    config = AutoConfig.from_pretrained(folder)
    reading = ReadingOf(lambda: task.auto_processor().from_pretrained(folder), 10**9, config)
    survey = task.survey(rows)
    config.update(task.model_config(survey))
    torch.manual_seed(0)
    model = AutoModelForAudioClassification.from_config(config).eval()
    examples = [e for row in rows for e in task.encode(row, survey, reading, False)]
    rng = np.random.default_rng(0)
    ready = [task.transform(example, rng, False, reading) for example in examples]
    batch = task.collate(ready, reading)
    ours = task.loss_sum(task.forward(model, batch), batch)
    inputs = {name: value for name, value in batch.items() if name in ("input_values", "input_features")}
    if "attention_mask" in batch:
        inputs["attention_mask"] = batch["attention_mask"]
    assert ours.item() == pytest.approx(model(**inputs, labels=batch["labels"]).loss.item() * 3, rel=1e-5)
    assert task.num_items(batch) == 3 and ours.item() > 3 * math.log(3) * 0.5
    alone = [task.collate([one], reading) for one in ready]
    assert sum(task.loss_sum(task.forward(model, b), b).item() for b in alone) == pytest.approx(ours.item(), rel=1e-5)
    pairs = task.predict(task.forward(model, batch), batch)
    assert [reference for _, reference in pairs] == [0, 1, 2]
    assert {*task.metric_names} <= {*task.metrics(pairs, 1.0, survey)}


@pytest.mark.parametrize("kind", ["ast", "whisper"])
def test_a_window_is_all_that_is_read(kind: str, tmp_path: Path) -> None:
    folder, task = MODELS[kind](tmp_path), task_of()
    config = AutoConfig.from_pretrained(folder)
    reading = ReadingOf(lambda: task.auto_processor().from_pretrained(folder), 10**9, config)
    seconds = {"ast": 0.98, "whisper": 2.0}[kind]
    limit = task.limit(reading)
    assert limit.key == "" and limit.length == pytest.approx(seconds * 100, abs=2)
    row = {"audio": clip(tmp_path / "long.wav", tone(300, seconds + 1)), "label": "a"}
    (whole,) = task.encode(row, Survey(["a", "b"]), reading, False)
    (cut,) = task.encode(row, Survey(["a", "b"]), reading, True)
    assert task.length(whole) > limit.length == task.length(cut)
    rng = np.random.default_rng(0)
    torch.testing.assert_close(*(task.collate([task.transform(e, rng, False, reading)], reading) for e in (whole, cut)))
    reasons = task.without_effect(reading)
    assert "takes no masks" in reasons["task.spec_augment"] and "of every clip" in reasons["task.max_seconds"]


def test_labels_are_read_as_those_of_texts() -> None:
    rows = [{"label": label} for label in (2, 10, "1")]
    assert task_of().survey(rows).labels == ["1", "2", "10"]
    named = task_of(labels={1: "one", 2: "two", 10: "ten"})
    survey = named.survey(rows)
    assert survey.labels == ["one", "two", "ten"] and survey.order == "recipe"
    assert named.model_config(survey)["id2label"] == {0: "one", 1: "two", 2: "ten"}
    named.check(rows[0])
    with pytest.raises(BadRow, match=r"label '3' is not in task.labels"):
        named.check({"label": 3})
    with pytest.raises(BadRow, match=r"label 'ones' was never seen in training. Did you mean 'one'"):
        named.check_label({"label": "ones"}, survey)
    with pytest.raises(BadRow, match="label is missing"):
        task_of().check({})
    with pytest.raises(DataError, match="at least 2 different labels"):
        task_of().survey(rows[:1])
    with pytest.raises(ConfigError, match="distinct"):
        task_of(labels=["a", "a"])


def test_a_key_that_the_model_has_no_part_for_is_refused(tmp_path: Path) -> None:
    model = AutoModelForAudioClassification.from_config(AutoConfig.from_pretrained(build_tiny_ast(tmp_path)))
    assert task_of().settle(model, pretrained=True) == ""
    with pytest.raises(
        ConfigError, match=r"task.freeze_feature_encoder: ASTForAudioClassification has no convolutions"
    ):
        task_of(freeze_feature_encoder=True).settle(model, pretrained=True)
