"""Sounds decoded from files to one channel at a model's sampling rate, and the checks that a clip can be used."""

import io
from math import gcd
from typing import TYPE_CHECKING, Any

from onecurve.errors import BadRow

if TYPE_CHECKING:
    from numpy import ndarray

_UNKNOWN_SIZES = {0, 0xFFFFFFFF}
"""What a program that writes WAV to a pipe gives as the size of the data: it cannot go back to fill it in."""


def decode_audio(content: bytes, sampling_rate: int) -> "ndarray":
    """Return a sound file's samples: float32 [samples] in [-1, 1], one channel (the mean of all) at `sampling_rate` Hz.

    Reads what libsndfile reads: WAV, FLAC, Ogg (Vorbis, Opus), MP3, AIFF, AU and others. Another rate is converted by
    `scipy.signal.resample_poly`, a polyphase filter (its default Kaiser window), the same numbers on every machine.

    Raises:
        BadRow: Not such a file, a damaged or shortened one, an empty one, or samples that are not finite.
    """
    samples, rate = _read(content)
    if not len(samples):
        raise BadRow("audio has no samples")
    import numpy as np

    if not np.isfinite(samples).all():
        raise BadRow("audio has samples that are not finite (NaN or infinite)")
    mono = samples.mean(axis=1, dtype=np.float32)
    if rate == sampling_rate:
        return mono
    from scipy.signal import resample_poly

    common = gcd(rate, sampling_rate)
    return resample_poly(mono, sampling_rate // common, rate // common).astype(np.float32)


def _read(content: bytes) -> tuple[Any, int]:
    """Return samples, float32 [samples, channels], and their rate in Hz."""
    import soundfile

    if not content:
        raise BadRow("audio is an empty file")
    if missing := _missing_bytes(content):
        raise BadRow(f"audio is cut off: the WAV file's header promises {missing:,} bytes more")
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            samples, promised, rate = file.read(dtype="float32", always_2d=True), file.frames, file.samplerate
    except soundfile.LibsndfileError as error:
        reason = error.error_string.removeprefix("Error : ").rstrip(".")
        raise BadRow(f"audio is not a sound file that can be read: {reason}") from None
    if len(samples) < promised:
        raise BadRow(f"audio is cut off or damaged: {len(samples):,} of its {promised:,} samples can be read")
    return samples, rate


def _missing_bytes(content: bytes) -> int:
    """Return how many bytes of a WAV file's samples are missing: libsndfile reads what is left without a word."""
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        return 0
    start = 12
    while start + 8 <= len(content):
        kind, size = content[start : start + 4], int.from_bytes(content[start + 4 : start + 8], "little")
        start += 8
        if kind == b"data":
            return 0 if size in _UNKNOWN_SIZES else max(0, start + size - len(content))
        start += size + size % 2
    return 0


def frames_of(config: Any, samples: int) -> int:
    """Return how many frames the convolutions of a model that reads raw waveforms make of a clip.

    The length of a convolution's output without padding: torch.nn.Conv1d's formula, layer by layer.

    Args:
        config: The model's: `conv_kernel` and `conv_stride`, one number a layer.
        samples: Of the clip.
    """
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        samples = (samples - kernel) // stride + 1 if samples >= kernel else 0
    return samples


def fewest_samples(config: Any, frames: int = 1) -> int:
    """Return the samples of the shortest clip of which a model that reads raw waveforms makes so many frames."""
    samples = frames
    for kernel, stride in reversed(list(zip(config.conv_kernel, config.conv_stride, strict=True))):
        samples = (samples - 1) * stride + kernel
    return samples


def beep(hertz: float, seconds: float = 0.3, rate: int = 16000) -> bytes:
    """Return a tone as a WAV file of 16 bits: a sample of a task's data."""
    import math
    import wave
    from array import array

    samples = (int(12000 * math.sin(2 * math.pi * hertz * time / rate)) for time in range(int(seconds * rate)))
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(array("h", samples).tobytes())
    return content.getvalue()
