import pytest
from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2BertConfig, Wav2Vec2Config, Wav2Vec2FeatureExtractor

from onecurve.content.audio import beep, decode_audio
from onecurve.content.clips import Clips
from tests.tiny_sounds import tone


def test_spectrograms_as_long_as_the_clip_come_with_their_mask() -> None:
    clips = Clips(Wav2Vec2BertConfig(), SeamlessM4TFeatureExtractor())
    examples = [clips.features(tone(300, seconds)) for seconds in (0.31, 0.5)]
    batch = clips.pad(examples)
    assert batch["input_features"].shape[:2] == batch["attention_mask"].shape
    frames = [clips.frames(int(seconds * 16000)) for seconds in (0.31, 0.5)]
    assert batch["attention_mask"].sum(-1).tolist() == frames
    assert clips.frames(clips.most_samples(10, None)) <= 10


def test_a_limit_in_seconds_is_one_in_frames() -> None:
    clips = Clips(Wav2Vec2Config(), Wav2Vec2FeatureExtractor())
    assert clips.most_frames(1.0) == clips.frames(16000) == 49
    assert clips.frames(clips.most_samples(49, None)) == 49
    assert clips.most_samples(49, 0.5) == 8000
    assert clips.outputs(49) == 49
    assert Clips(Wav2Vec2Config(add_adapter=True), clips.extractor).outputs(49) == 7  # three layers of stride 2


def test_a_sample_is_a_tone() -> None:
    wave = decode_audio(beep(440, 0.1), 16000)
    assert len(wave) == 1600 and wave.max() == pytest.approx(12000 / 32768, abs=1e-3)
