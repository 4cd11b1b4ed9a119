"""Base class of the tasks that read sounds: clips are decoded each time they are read, masked, and padded."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from onecurve.content.audio import decode_audio
from onecurve.content.clips import Clips
from onecurve.content.media import read_media
from onecurve.content.spec_augment import draw_spans
from onecurve.errors import ConfigError
from onecurve.tasks import base
from onecurve.tasks.base import Batch, Example, Limit, Processing, Row, Settings

if TYPE_CHECKING:
    from numpy.random import Generator
    from torch import Tensor, nn

_INPUTS = ("input_values", "input_features", "attention_mask", "mask_time_indices")
"""What a batch has for the model's forward."""


class SpecAugment(Settings):
    time_prob: float = Field(default=0.05, ge=0, le=1)
    """Share of an example's frames that spans of masks cover, where none overlap; 0: none."""
    time_length: int = Field(default=10, ge=1)
    """Frames of a span."""
    feature_prob: float = Field(default=0.0, ge=0, le=1)
    """Share of the features that are zero in all frames of an example, in the same way; 0: none."""
    feature_length: int = Field(default=10, ge=1)
    """Features of a span."""


class SoundSettings(Settings):
    max_seconds: float | None = Field(default=None, gt=0)
    """Longest clip. `data.on_long` says what is done with longer ones. Absent: no limit but the model's."""
    spec_augment: SpecAugment | None = None
    """Masks of training, drawn for each example. Absent: those that the model's config asks for (mask_time_prob, ...)
    unless its apply_spec_augment is false."""
    freeze_feature_encoder: bool | None = None
    """Whether the convolutions that read the waveform keep their weights. Absent: yes where they are pretrained."""


class SoundTask(base.Task):
    """A task over clips: the column `audio`. It implements `Transforms`."""

    Settings: ClassVar[type[Settings]] = SoundSettings
    media: ClassVar[Mapping[str, str]] = {"audio": "audio"}
    needs_whole_model: ClassVar[Mapping[str, str]] = {
        "task.freeze_feature_encoder": "an adapter (peft) leaves every weight of the base as it is, these convolutions "
        "too"
    }
    packages: frozenset[str] = frozenset({"soundfile"})

    def without_effect(self, reading: Processing | None = None) -> Mapping[str, str]:
        unread: dict[str, str] = dict(base.NO_TEXT_OUT)
        if reading is None:
            return unread
        clips, kind = Clips.of(reading), f"a model of type {reading.config.model_type}"
        if not clips.takes_masks:
            unread["task.spec_augment"] = f"{kind} takes no masks"
        if clips.window:
            seconds = clips.window / clips.sampling_rate
            unread["task.max_seconds"] = f"{kind} reads {seconds:.2f} s of every clip, shorter ones with silence"
        return unread

    def limit(self, reading: Processing) -> Limit:
        clips, asked = Clips.of(reading), self.settings.max_seconds
        limits = [Limit(reading.max_length, "frames"), Limit(clips.most_frames(None), "frames", "")]
        if clips.window and reading.max_length < limits[1].length:
            raise ConfigError(
                f"is {reading.max_length}, and the model makes {limits[1].length} frames of every clip.",
                where="data.max_length",
                fix="Remove it.",
            )
        if asked:
            limits.append(Limit(clips.most_frames(asked), "frames", "task.max_seconds"))
        return min(limits, key=lambda limit: limit.length)

    def length(self, example: Example) -> int:
        return int(example["frames"])

    def clip(self, row: Row, reading: Processing, truncate: bool) -> Example:
        """Return what an example keeps of its clip: the file, the samples that are read, and their frames.

        Raises:
            BadRow: It cannot be decoded, or is too short to be one frame.
        """
        clips = Clips.of(reading)
        samples = len(decode_audio(read_media(row["audio"]), clips.sampling_rate))
        clips.check(samples)
        if truncate:
            samples = min(samples, clips.most_samples(self.limit(reading).length, self.settings.max_seconds))
        return {"audio": row["audio"], "num_samples": samples, "frames": clips.frames(samples)}

    def shown(self, example: Example) -> str:
        """Show a clip as the model sees it."""
        return f"{example['audio']['path']}, {example['num_samples']} samples, {example['frames']} frames"

    def transform(self, example: Example, rng: "Generator", training: bool, reading: Processing) -> Example:
        clips = Clips.of(reading)
        samples = decode_audio(read_media(example["audio"]), clips.sampling_rate)[: example["num_samples"]]
        ready = {**example, **clips.features(samples)}
        if training and clips.takes_masks:
            config, masks = reading.config, self._masks(reading.config)
            width = config.hidden_size
            if masks.time_prob:
                least = getattr(config, "mask_time_min_masks", 0)
                ready["mask_time"] = draw_spans(example["frames"], masks.time_prob, masks.time_length, least, rng)
            if masks.feature_prob:
                least = getattr(config, "mask_feature_min_masks", 0)
                ready["mask_feature"] = draw_spans(width, masks.feature_prob, masks.feature_length, least, rng)
        return ready

    def _masks(self, config: Any) -> SpecAugment:
        if self.settings.spec_augment is not None:
            return self.settings.spec_augment
        if not getattr(config, "apply_spec_augment", True):
            return SpecAugment(time_prob=0.0)
        names = ("time_prob", "time_length", "feature_prob", "feature_length")
        return SpecAugment(**{name: getattr(config, f"mask_{name}") for name in names})

    def collate(self, examples: Sequence[Example], reading: Processing) -> Batch:
        import torch

        clips = Clips.of(reading)
        batch = clips.pad(examples)
        if "mask_time" in examples[0]:
            masks = torch.zeros(len(examples), clips.padded_frames(batch), dtype=torch.bool)
            for row, example in zip(masks, examples, strict=True):
                row[: example["frames"]] = torch.from_numpy(example["mask_time"])
            batch["mask_time_indices"] = masks
        if "mask_feature" in examples[0]:
            batch["mask_feature"] = torch.stack([torch.from_numpy(e["mask_feature"]) for e in examples])
        return batch

    # The model

    def model_config(self, survey: base.Survey) -> dict[str, Any]:
        masks = self.settings.spec_augment
        if masks is None:
            return {}
        told = {"apply_spec_augment": True, "mask_time_prob": masks.time_prob, "mask_time_length": masks.time_length}
        # A model that masks no frames needs no vector to put in their place
        return told if masks.time_prob else {**told, "mask_feature_prob": 0.0}

    def settle(self, model: Any, pretrained: bool) -> str:
        """Have a loaded model draw no masks of its own, and freeze the convolutions that read waveforms."""
        asked, told = self.settings.freeze_feature_encoder, []
        if not hasattr(model, "freeze_feature_encoder"):
            if asked is not None:
                raise ConfigError(
                    f"{type(model).__name__} has no convolutions that read waveforms.",
                    where="task.freeze_feature_encoder",
                    fix="Remove it.",
                )
        elif pretrained if asked is None else asked:
            model.freeze_feature_encoder()
            told.append("the convolutions of the feature encoder are frozen: task.freeze_feature_encoder")
        config = model.config
        if getattr(config, "mask_feature_prob", 0):  # masks come with the examples, each from a stream of its own
            config.mask_feature_prob = 0.0
            told.append("mask_feature_prob is 0 in the saved config: features are masked outside the model")
        if getattr(config, "apply_spec_augment", False) and config.model_type == "whisper":
            config.apply_spec_augment = False
            told.append("apply_spec_augment is false: the model would draw masks for whole micro-batches")
        return "; ".join(told)

    def forward(self, model: "nn.Module", batch: Batch) -> Any:
        with _masked_features(model, batch.get("mask_feature")):
            return model(**{name: batch[name] for name in _INPUTS if name in batch}).logits


@contextmanager
def _masked_features(model: "nn.Module", masked: "Tensor | None") -> Iterator[None]:
    """Have the encoder read zero for the features that are masked: bool [examples, features].

    That is where transformers masks them: its models draw these masks themselves and take none.
    """
    if masked is None:
        yield
        return
    from transformers import PreTrainedModel

    whole: Any = next(part for part in model.modules() if isinstance(part, PreTrainedModel))
    encoder = whole.base_model.encoder
    handle = encoder.register_forward_pre_hook(
        lambda _, inputs: (inputs[0].masked_fill(masked[:, None], 0), *inputs[1:]),
    )
    try:
        yield
    finally:
        handle.remove()
