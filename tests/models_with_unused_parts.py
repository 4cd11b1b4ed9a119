"""Models as users bring them, of which training leaves something out: always, or for lack of tokens."""

from pathlib import Path
from typing import Any

from tests.tiny_models import _tokenizer

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def build_bigbird(folder: Path) -> Path:
    """Write a BigBird: it has a pooler, and its classifier does not look at it."""
    from transformers import BigBirdConfig, BigBirdModel

    tokenizer = _tokenizer("[CLS]", "[SEP]", "[PAD]", extra=["[MASK]"], pairs=True)
    config = BigBirdConfig(
        **SIZES, **_ids(tokenizer), max_position_embeddings=256, attention_type="original_full",
        hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1,
    )  # fmt: skip
    return _write(folder, tokenizer, BigBirdModel, config)


def build_gemma3(folder: Path) -> Path:
    """Write a Gemma 3 as it is published, with a vision tower: texts alone never reach it."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    tokenizer = _tokenizer("<bos>", "<eos>", "<pad>", extra=["<image>"])
    text = {**SIZES, **_ids(tokenizer), "num_key_value_heads": 2, "head_dim": 8, "attention_dropout": 0.1}
    vision = {**SIZES, "hidden_size": 16, "image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, **_special(tokenizer))
    return _write(folder, tokenizer, Gemma3ForConditionalGeneration, config)


def build_mixtral(folder: Path) -> Path:
    """Write a Mixtral with more experts than a short micro-batch has tokens."""
    from transformers import MixtralConfig, MixtralForCausalLM

    tokenizer = _tokenizer("<bos>", "<eos>", "<pad>", extra=[])
    config = MixtralConfig(
        **SIZES, **_ids(tokenizer), num_key_value_heads=2, num_local_experts=64, num_experts_per_tok=2,
        attention_dropout=0.1,
    )  # fmt: skip
    return _write(folder, tokenizer, MixtralForCausalLM, config)


def _special(tokenizer: Any) -> dict[str, Any]:
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "sep", "pad")}
    return {f"{name}_token_id": token for name, token in ids.items() if token is not None}


def _ids(tokenizer: Any) -> dict[str, Any]:
    return {"vocab_size": len(tokenizer), **_special(tokenizer)}


def _write(folder: Path, tokenizer: Any, kind: Any, config: Any) -> Path:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
