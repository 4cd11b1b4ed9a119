"""Clips of tones, and models that read sounds, small enough to train in a test."""

import io
from pathlib import Path
from typing import Any

import numpy as np

RATE = 16000
CONVOLUTIONS = {"conv_dim": [16, 16, 16], "conv_kernel": [10, 8, 4], "conv_stride": [8, 8, 5]}
"""Frames of 20 ms by three layers in place of seven."""


def tone(hertz: float, seconds: float, rate: int = RATE, noise: float = 0.01, seed: int = 0) -> np.ndarray:
    """A sine with a little noise: float32 [samples]."""
    time = np.arange(int(seconds * rate)) / rate
    wave = 0.5 * np.sin(2 * np.pi * hertz * time) + noise * np.random.default_rng(seed).standard_normal(len(time))
    return wave.astype(np.float32)


def encoded(samples: np.ndarray, rate: int = RATE, kind: str = "WAV", subtype: str | None = None) -> bytes:
    """The samples as a sound file."""
    import soundfile

    content = io.BytesIO()
    soundfile.write(content, samples, rate, format=kind, subtype=subtype)
    return content.getvalue()


def clip(file: Path, samples: np.ndarray, rate: int = RATE) -> dict[str, str]:
    """Write a sound file and return it as a row has it."""
    from onecurve.content.media import media_digest

    content = encoded(samples, rate, file.suffix[1:].upper())
    file.write_bytes(content)
    return {"path": str(file), "digest": media_digest(content)}


def build_tiny_wav2vec2(
    folder: Path, kind: str = "wav2vec2", letters: str = "", weights: Any = None, seed: int = 0, **config: Any
) -> Path:
    """Write a model of two layers that reads waveforms.

    Args:
        folder: Where to write; made when it does not exist.
        kind: Its model_type.
        letters: Characters of a CTC tokenizer beside it; empty: no tokenizer.
        weights: The model class whose weights are written; None: config alone.
        seed: Of the weights.
        **config: Further fields of its config.
    """
    import torch
    from transformers import AutoConfig, Wav2Vec2FeatureExtractor

    from onecurve.content.ctc_vocabulary import _new_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    extra = {} if not letters else {"vocab_size": 5 + len(letters), "pad_token_id": 0, "ctc_loss_reduction": "sum"}
    fields = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 4,
        "num_feat_extract_layers": 3,
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
        "classifier_proj_size": 16,
        "mask_time_length": 2,
        "layerdrop": 0.0,
        **CONVOLUTIONS,
        **extra,
        **config,
    }
    made = AutoConfig.for_model(kind, **fields)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    if letters:
        _new_tokenizer(letters).save_pretrained(folder)
    if weights is None:
        made.save_pretrained(folder)
        return folder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weights(made).save_pretrained(folder)
    return folder


def build_tiny_ast(folder: Path, weights: Any = None) -> Path:
    """Write an Audio Spectrogram Transformer of two layers that reads a window of a second."""
    import torch
    from transformers import ASTConfig, ASTFeatureExtractor

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    made = ASTConfig(**shape, max_length=96, num_mel_bins=16, hidden_dropout_prob=0.1)
    ASTFeatureExtractor(max_length=96, num_mel_bins=16).save_pretrained(folder)
    if weights is None:
        made.save_pretrained(folder)
        return folder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights(made).save_pretrained(folder)
    return folder
