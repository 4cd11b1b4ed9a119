"""Sound files as users have them, against soundfile's own samples and an FFT resampler."""

import numpy as np
import pytest
from scipy.signal import resample
from transformers import Wav2Vec2Config
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2Model

from onecurve.content.audio import decode_audio, fewest_samples, frames_of
from onecurve.errors import BadRow
from tests.tiny_sounds import RATE, encoded, tone

FORMATS = [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "PCM_U8"), ("FLAC", None), ("OGG", "VORBIS"), ("MP3", None)]


@pytest.mark.parametrize(("kind", "subtype"), FORMATS)
def test_each_format_gives_the_sound_that_was_written(kind: str, subtype: str | None) -> None:
    wave = tone(440, 0.5)
    read = decode_audio(encoded(wave, kind=kind, subtype=subtype), RATE)
    assert read.dtype == np.float32 and read.shape == wave.shape
    assert np.corrcoef(read, wave)[0, 1] > 0.99


def test_channels_are_averaged() -> None:
    left, right = tone(440, 0.2), tone(700, 0.2)
    read = decode_audio(encoded(np.stack([left, right], 1), subtype="FLOAT"), RATE)
    np.testing.assert_allclose(read, (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_another_rate_is_converted(rate: int) -> None:
    wave = tone(440, 0.5, rate, noise=0)
    read = decode_audio(encoded(wave, rate, subtype="FLOAT"), RATE)
    assert abs(len(read) - len(wave) * RATE / rate) <= 1
    expected = resample(wave, len(read))
    inside = slice(800, -800)  # where no filter reads past the ends
    assert np.abs(read[inside] - expected[inside]).max() < 0.02


WAVE = encoded(tone(440, 0.5))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is an empty file"),
        (b"this is text, not sound", "is not a sound file that can be read: Format not recognised"),
        (encoded(np.zeros(0, np.float32)), "has no samples"),
        (encoded(np.array([0, np.nan, 0], np.float32), subtype="FLOAT"), "not finite"),
        (WAVE[: len(WAVE) // 2], "is cut off: the WAV file's header promises 8,022 bytes more"),
        (encoded(tone(440, 0.5), kind="FLAC")[:4000], "is not a sound file that can be read: flac decoder lost sync"),
        (encoded(tone(440, 2), kind="MP3")[:5000], "is cut off or damaged"),
    ],
    # Named, because a float WAV holds the second at which it was written: two workers would collect other names.
    ids=["empty", "text", "no samples", "not finite", "half a wav", "half a flac", "half an mp3"],
)
def test_files_that_are_no_sound_are_told(content: bytes, message: str) -> None:
    with pytest.raises(BadRow, match=message):
        decode_audio(content, RATE)


def test_a_wav_from_a_pipe_does_not_know_its_size() -> None:
    start = WAVE.index(b"data") + 4
    piped = WAVE[:start] + b"\xff\xff\xff\xff" + WAVE[start + 4 :]
    np.testing.assert_array_equal(decode_audio(piped, RATE), decode_audio(WAVE, RATE))


def test_frames_are_what_the_model_makes() -> None:
    import torch

    config = Wav2Vec2Config()
    with torch.device("meta"):
        model = Wav2Vec2Model(config)
    for samples in (400, 719, 720, 16000, 12345):
        assert frames_of(config, samples) == int(model._get_feat_extract_output_lengths(torch.tensor(samples)))
    assert frames_of(config, 399) == 0
    assert fewest_samples(config) == 400 and fewest_samples(config, 50) == 400 + 49 * 320
