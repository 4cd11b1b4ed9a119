"""What the tasks over sounds share: clips in, frames, masks, and batches on whose cut nothing depends."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForAudioClassification,
    AutoModelForCTC,
    Wav2Vec2ForSequenceClassification,
)

from onecurve.config import Recipe, TaskSection
from onecurve.content.audio import frames_of
from onecurve.content.survey import Survey
from onecurve.errors import BadRow, ConfigError
from onecurve.model.architectures import check_architecture
from onecurve.model.loading import load_model
from onecurve.preflight import read
from onecurve.tasks import load_task
from tests.launching import write_recipe
from tests.readings import ReadingOf
from tests.tiny_sounds import RATE, build_tiny_wav2vec2, clip, tone

NAMES = ["high", "low"]


def prepared(folder: Path, name: str = "audio_classification", **settings: Any) -> tuple[Any, ReadingOf]:
    task = load_task(TaskSection(name=name, **settings))
    config = AutoConfig.from_pretrained(folder)
    return task, ReadingOf(lambda: task.auto_processor().from_pretrained(str(folder)), 10**9, config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_wav2vec2(tmp_path_factory.mktemp("models") / "wav2vec2")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    sounds = tmp_path_factory.mktemp("sounds")
    return [
        {"audio": clip(sounds / f"{number}.wav", tone(300 + 300 * (number % 2), 0.25 + 0.11 * number)), "label": label}
        for number, label in enumerate(["low", "high"] * 3)
    ]


def encode(task: Any, reading: Any, rows: list[dict[str, Any]], truncate: bool = False) -> list[dict[str, Any]]:
    return [example for row in rows for example in task.encode(row, Survey(NAMES), reading, truncate)]


def batch_of(task: Any, reading: Any, examples: list[Any], training: bool, keys: Any = None) -> dict[str, torch.Tensor]:
    keys = range(len(examples)) if keys is None else keys
    streams = [np.random.Generator(np.random.Philox(key=key)) for key in keys]
    ready = [task.transform(e, rng, training, reading) for e, rng in zip(examples, streams, strict=True)]
    return task.collate(ready, reading)


def test_an_example_refers_to_its_file_and_has_the_frames_of_the_model(folder: Path, rows: list[Any]) -> None:
    task, reading = prepared(folder)
    examples = encode(task, reading, rows)
    assert [example["audio"] for example in examples] == [row["audio"] for row in rows]
    assert [task.length(e) for e in examples] == [frames_of(reading.config, e["num_samples"]) for e in examples]
    assert [e["num_samples"] for e in examples] == [int((0.25 + 0.11 * number) * RATE) for number in range(6)]


def test_inputs_are_those_of_the_feature_extractor_for_one_clip(folder: Path, rows: list[Any]) -> None:
    import soundfile

    task, reading = prepared(folder)
    batch = batch_of(task, reading, encode(task, reading, rows), training=False)
    for number, row in enumerate(rows):
        samples, _ = soundfile.read(row["audio"]["path"], dtype="float32")
        expected = reading.processor(samples, sampling_rate=RATE, return_tensors="pt")["input_values"][0]
        assert int(batch["attention_mask"][number].sum()) == len(samples)
        torch.testing.assert_close(batch["input_values"][number, : len(samples)], expected)
        assert not batch["input_values"][number, len(samples) :].any()
    assert "mask_time_indices" not in batch


def test_short_clips_and_long_ones_are_told_and_cut(folder: Path, rows: list[Any], tmp_path: Path) -> None:
    task, reading = prepared(folder, max_seconds=0.3)
    with pytest.raises(BadRow, match=r"audio is too short: 100 samples at 16000 Hz, and the model needs 258"):
        encode(task, reading, [{"audio": clip(tmp_path / "a.wav", tone(300, 0.00625)), "label": "low"}])
    limit = task.limit(reading)
    assert limit == (frames_of(reading.config, 4800), "frames", "task.max_seconds")
    whole, cut = encode(task, reading, rows), encode(task, reading, rows, truncate=True)
    assert max(map(task.length, whole)) > limit.length >= max(map(task.length, cut))
    assert max(example["num_samples"] for example in cut) <= 4800
    batch = batch_of(task, reading, cut, training=False)
    assert batch["input_values"].shape[1] == max(example["num_samples"] for example in cut)


def test_masks_belong_to_the_example_and_its_stream(folder: Path, rows: list[Any]) -> None:
    task, reading = prepared(folder, spec_augment={"time_prob": 0.4, "time_length": 2, "feature_prob": 0.3})
    examples = encode(task, reading, rows)
    batch = batch_of(task, reading, examples, training=True)
    frames = [task.length(example) for example in examples]
    assert batch["mask_time_indices"].shape == (6, max(frames))
    for number, example in enumerate(examples):
        alone = batch_of(task, reading, [example], training=True, keys=[number])
        assert torch.equal(alone["mask_time_indices"][0], batch["mask_time_indices"][number, : frames[number]])
        assert torch.equal(alone["mask_feature"][0], batch["mask_feature"][number])
        assert not batch["mask_time_indices"][number, frames[number] :].any()
    assert batch["mask_time_indices"].any() and batch["mask_feature"].any()
    assert not torch.equal(
        batch_of(task, reading, examples, True, range(9, 15))["mask_time_indices"], batch["mask_time_indices"]
    )


def test_without_a_setting_the_masks_of_the_models_config_are_drawn(tmp_path: Path, rows: list[Any]) -> None:
    folder = build_tiny_wav2vec2(tmp_path, mask_time_prob=0.5, mask_feature_prob=0.0)
    task, reading = prepared(folder)
    batch = batch_of(task, reading, encode(task, reading, rows), training=True)
    assert batch["mask_time_indices"].float().mean() > 0.1 and "mask_feature" not in batch
    reading.config.apply_spec_augment = False
    assert "mask_time_indices" not in batch_of(task, reading, encode(task, reading, rows), training=True)


def test_the_model_masks_what_it_is_told_and_draws_nothing_itself(folder: Path, rows: list[Any]) -> None:
    """Against the same mask done by hand between its convolutions and its encoder."""
    settings = {"time_prob": 0.4, "time_length": 2, "feature_prob": 0.4, "feature_length": 2}
    task, reading = prepared(folder, spec_augment=settings)
    reading.config.mask_feature_prob = 0.9
    reading.config.update(task.model_config(Survey(NAMES)))
    torch.manual_seed(0)
    model = AutoModelForAudioClassification.from_config(reading.config).double()
    assert "mask_feature_prob is 0" in task.settle(model, pretrained=False)
    without_dropout(model).train()
    batch = batch_of(task, reading, encode(task, reading, rows[:1]), training=True)
    batch["input_values"] = batch["input_values"].double()
    state = np.random.get_state()[1].copy()
    found = task.forward(model, batch)
    assert np.array_equal(np.random.get_state()[1], state), "the model drew from numpy's global state"
    base = model.wav2vec2
    hidden, _ = base.feature_projection(base.feature_extractor(batch["input_values"]).transpose(1, 2))
    hidden = hidden.where(~batch["mask_time_indices"][..., None], base.masked_spec_embed)
    hidden = hidden * ~batch["mask_feature"][:, None]
    expected = model.classifier(model.projector(base.encoder(hidden).last_hidden_state).mean(1))
    torch.testing.assert_close(found, expected)
    model.eval()
    assert not torch.allclose(found, model(batch["input_values"]).logits)


def without_dropout(model: Any) -> Any:
    from tests.tasks.contract import without_dropout as without

    return without(model)


@pytest.mark.parametrize("name", ["audio_classification", "speech_recognition"])
@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat"])
def test_padding_changes_neither_loss_nor_gradient(kind: str, name: str, tmp_path: Path, rows: list[Any]) -> None:
    folder = build_tiny_wav2vec2(tmp_path, kind, letters="ab")
    task, reading = prepared(folder, name, spec_augment={"time_prob": 0.3, "time_length": 2, "feature_prob": 0.2})
    assert reading.processor is not None
    reading.config.update(task.model_config(Survey(NAMES)))
    texts = [{**row, "text": "ab a"} for row in rows]
    torch.manual_seed(0)
    auto = AutoModelForCTC if name == "speech_recognition" else AutoModelForAudioClassification
    model = without_dropout(auto.from_config(reading.config)).double().train()
    task.settle(model, pretrained=False)
    examples = encode(task, reading, texts)
    found = []
    for size in (6, 4, 1):
        model.zero_grad()
        total = 0.0
        for start in range(0, 6, size):
            batch = batch_of(task, reading, examples[start : start + size], True, range(start, min(6, start + size)))
            batch["input_values"] = batch["input_values"].double()
            loss = task.loss_sum(task.forward(model, batch), batch)
            loss.backward()
            total += loss.item()
        gradients = {n: p.grad for n, p in model.named_parameters()}
        assert [name for name, gradient in gradients.items() if gradient is None] == []
        found.append((total, torch.cat([gradient.flatten() for gradient in gradients.values()]).clone()))
    (loss, gradient), *others = found
    assert gradient.norm() > 1e-3
    for other, theirs in others:
        assert other == pytest.approx(loss, rel=1e-6)  # the loss is taken in float32
        assert float((theirs - gradient).norm() / gradient.norm()) < 1e-5


READS_PADDING = {
    "wav2vec2, group norm": ("wav2vec2", {"feat_extract_norm": "group"}),
    "hubert, group norm": ("hubert", {"feat_extract_norm": "group"}),
    "hubert, batch norm": ("hubert", {"conv_pos_batch_norm": True}),
    "wavlm, group norm": ("wavlm", {"feat_extract_norm": "group"}),
    "wav2vec2 with an adapter": ("wav2vec2", {"add_adapter": True, "num_adapter_layers": 1, "output_hidden_size": 32}),
    "sew": ("sew", {"squeeze_factor": 2}),
    "data2vec": ("data2vec-audio", {"conv_pos_kernel_size": 5, "num_conv_pos_embeddings": 2}),
    "conformer": ("wav2vec2-conformer", {}),
}


@pytest.mark.parametrize("case", READS_PADDING)
def test_models_that_read_padding_are_refused_with_more_than_one_clip(case: str, tmp_path: Path) -> None:
    kind, fields = READS_PADDING[case]
    config = AutoConfig.from_pretrained(build_tiny_wav2vec2(tmp_path, kind, letters="ab", **fields))
    torch.manual_seed(0)
    model = AutoModelForCTC.from_config(config).double().eval()
    with torch.no_grad():
        for weight in model.parameters():  # biases start at zero
            weight.add_(0.1 * torch.randn_like(weight))
    wave = torch.randn(1, 4801).double()
    mask = torch.ones(1, 4801, dtype=torch.long)
    alone = model(wave, attention_mask=mask).logits
    padded = model(torch.nn.functional.pad(wave, (0, 999)), attention_mask=torch.nn.functional.pad(mask, (0, 999)))
    assert float((padded.logits[:, : alone.shape[1]] - alone).abs().max()) > 1e-4, "refused for nothing"
    told = {"output_dir": "x", "task": {"name": "speech_recognition"}, "model": {"path": "some/model"}}
    train = {"max_steps": 1, "global_batch_size": 4}
    many = Recipe.model_validate({**told, "data": {"train": "x"}, "train": {**train, "micro_batch_size": 2}})
    with pytest.raises(ConfigError, match=r"depends on the padding after it: .* so that no clip is padded. Or take a"):
        check_architecture(many, AutoModelForCTC, config)
    one = Recipe.model_validate({**told, "data": {"train": "x"}, "train": {**train, "micro_batch_size": 1}})
    check_architecture(one, AutoModelForCTC, config)


def test_the_convolutions_are_frozen_where_they_are_pretrained(folder: Path) -> None:
    def trained(pretrained: bool, **settings: Any) -> bool:
        task, reading = prepared(folder, **settings)
        model = AutoModelForAudioClassification.from_config(reading.config)
        task.settle(model, pretrained)
        assert model.classifier.weight.requires_grad
        return model.wav2vec2.feature_extractor.conv_layers[0].conv.weight.requires_grad

    assert not trained(True) and trained(False)
    assert trained(True, freeze_feature_encoder=False) and not trained(False, freeze_feature_encoder=True)


def sound_recipe(folder: Path, **sections: Any) -> dict[str, Any]:
    return {
        "output_dir": "unused",
        "model": {"path": str(folder)},
        "data": {"train": "unused"},
        "train": {"max_steps": 1},
        **sections,
    }


@pytest.mark.parametrize("frozen", ["true", "false"])
def test_what_an_adapter_leaves_frozen_anyway_cannot_be_set(folder: Path, tmp_path: Path, frozen: str) -> None:
    task = {"name": "audio_classification"}
    recipe = write_recipe(tmp_path / "recipe.yaml", **sound_recipe(folder, task=task, peft={"method": "lora"}))
    read([str(recipe)])
    with pytest.raises(ConfigError, match=r"task.freeze_feature_encoder: has no effect: an adapter \(peft\) leaves"):
        read([str(recipe), "--task.freeze_feature_encoder", frozen])
    read([str(recipe), "--task.freeze_feature_encoder", frozen, "--peft", "null"])


def test_the_vector_that_replaces_masked_frames_is_drawn_where_it_is_trained(tmp_path: Path) -> None:
    """Published checkpoints, such as wav2vec2-base-960h, have none."""
    kind = {"mask_time_prob": 0.0, "weights": Wav2Vec2ForSequenceClassification}
    folder = build_tiny_wav2vec2(tmp_path, num_labels=2, **kind)

    def load(peft: dict[str, Any] | None = None, **masks: float) -> Any:
        settings = {"name": "audio_classification", "spec_augment": masks or None}
        recipe = Recipe.model_validate(sound_recipe(folder, task=settings, peft=peft))
        config = AutoConfig.from_pretrained(folder)
        return load_model(recipe, load_task(recipe.task), config, Survey(NAMES), "no")

    assert not hasattr(load().wav2vec2, "masked_spec_embed")
    assert not hasattr(load(time_prob=0.0, feature_prob=0.2).wav2vec2, "masked_spec_embed")
    torch.manual_seed(1)
    drawn = load(time_prob=0.1)
    vector = drawn.wav2vec2.masked_spec_embed.data
    assert 0 <= float(vector.min()) < float(vector.max()) <= 1
    assert "wav2vec2.masked_spec_embed [32]" in drawn.new_weights and "drawn at random" in drawn.new_weights
    assert torch.equal(vector, load(time_prob=0.1).wav2vec2.masked_spec_embed)
    with pytest.raises(ConfigError, match=r"task.spec_augment: .* has no wav2vec2.masked_spec_embed, the vector"):
        load({"method": "lora"}, time_prob=0.1)
