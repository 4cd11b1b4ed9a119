"""How a model reads clips: its sampling rate, what its feature extractor makes of them, frames, and padding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

from onecurve.content.audio import fewest_samples, frames_of
from onecurve.errors import BadRow

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

UNLIMITED = 2**31 - 1
"""More frames than any clip has: what fits the int32 of stored lengths."""
_AST_HOP, _AST_WINDOW = 160, 400
"""Samples that transformers' ASTFeatureExtractor moves on by, and reads, for a frame; it does not name them."""


class Reading(Protocol):
    """What is asked of a task's `Processing`."""

    @property
    def processor(self) -> Any: ...

    @property
    def config(self) -> Any: ...


@dataclass(frozen=True)
class Clips:
    """A model's config and its feature extractor.

    Three kinds are known: raw waveforms, which convolutions turn into frames (wav2vec2 and its kin); spectrograms as
    long as the clip, with a mask (Wav2Vec2-BERT); and spectrograms of a fixed window (AST, Whisper).
    """

    config: Any
    extractor: Any

    @classmethod
    def of(cls, reading: Reading) -> "Clips":
        """Return how a run's model reads clips."""
        return cls(reading.config, getattr(reading.processor, "feature_extractor", reading.processor))

    @property
    def sampling_rate(self) -> int:
        """In Hz."""
        return int(self.extractor.sampling_rate)

    @property
    def reads_waveforms(self) -> bool:
        """Whether the model itself turns samples into frames."""
        return hasattr(self.config, "conv_kernel") and hasattr(self.config, "conv_stride")

    @property
    def window(self) -> int | None:
        """Samples that a fixed window holds; None where it is as long as the clip."""
        if type(self.extractor).__name__ == "ASTFeatureExtractor":
            return (self.extractor.max_length - 1) * _AST_HOP + _AST_WINDOW
        found = getattr(self.extractor, "n_samples", None)  # Whisper's
        return int(found) if found else None

    @property
    def takes_masks(self) -> bool:
        """Whether the model's forward takes the frames to mask."""
        return self.reads_waveforms or self.config.model_type == "wav2vec2-bert"

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        if self.reads_waveforms:
            return prod(self.config.conv_stride)
        return int(getattr(self.extractor, "hop_length", _AST_HOP)) * int(getattr(self.extractor, "stride", 1))

    def frames(self, samples: int) -> int:
        """Return the frames that a clip of so many samples has in the model; of a fixed window, at least the window's.

        Those beyond the window say that the clip is too long.
        """
        if self.reads_waveforms:
            return frames_of(self.config, samples)
        if self.window:
            return -(-max(samples, self.window) // self.hop)
        return int(self.features(_silence(samples))["attention_mask"].sum())

    def outputs(self, frames: int) -> int:
        """Return the frames of a model's outputs: fewer where an adapter with strides stands on its encoder."""
        for _ in range(self.config.num_adapter_layers if getattr(self.config, "add_adapter", False) else 0):
            frames = (frames - 1) // self.config.adapter_stride + 1
        return frames

    def most_frames(self, max_seconds: float | None) -> int:
        """Return the frames that a clip may have in so many seconds, or in the model's window where it has one."""
        if self.window:
            return self.frames(self.window)
        return self.frames(int(max_seconds * self.sampling_rate)) if max_seconds else UNLIMITED

    def most_samples(self, frames: int, max_seconds: float | None) -> int:
        """Return how much of a clip is read that must have no more than so many frames, and seconds."""
        limits = [int(max_seconds * self.sampling_rate)] if max_seconds else []
        if self.window:
            limits.append(self.window)
        if frames < UNLIMITED:
            limits.append(fewest_samples(self.config, frames) if self.reads_waveforms else frames * self.hop)
        return min(limits, default=UNLIMITED)

    def check(self, samples: int) -> None:
        """Raise `BadRow` where a clip is too short for the model."""
        least = fewest_samples(self.config) if self.reads_waveforms else _AST_WINDOW
        if samples < least:
            raise BadRow(
                f"audio is too short: {samples} samples at {self.sampling_rate} Hz, and the model needs {least} "
                f"({least / self.sampling_rate:.3f} s) for one frame"
            )

    def features(self, samples: "ndarray") -> dict[str, "ndarray"]:
        """Return what the feature extractor makes of one clip: each without the dimension of the batch."""
        made: Mapping[str, Any] = self.extractor(samples, sampling_rate=self.sampling_rate, return_tensors="np")
        return {name: value[0] for name, value in made.items()}

    def pad(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, "Tensor"]:
        """Return the inputs of a batch, with a mask of what is not padding where the model reads one.

        Each clip was made ready by itself, and so does not depend on the others: the extractors normalise whole padded
        batches where they return no mask.
        """
        import torch

        name = "input_values" if "input_values" in examples[0] else "input_features"
        rows = [torch.from_numpy(example[name]) for example in examples]
        if self.window:
            return {name: torch.stack(rows)}
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        given = (torch.from_numpy(e["attention_mask"]) if "attention_mask" in e else None for e in examples)
        masks = [torch.ones(len(row)) if mask is None else mask for row, mask in zip(rows, given, strict=True)]
        mask = torch.nn.utils.rnn.pad_sequence([mask.long() for mask in masks], batch_first=True)
        return {name: padded, "attention_mask": mask}

    def padded_frames(self, batch: Mapping[str, "Tensor"]) -> int:
        """Return the frames of a padded batch, masked or not."""
        width = batch["attention_mask"].shape[1]
        return frames_of(self.config, width) if self.reads_waveforms else width


def _silence(samples: int) -> "ndarray":
    import numpy as np

    return np.zeros(samples, dtype=np.float32)
