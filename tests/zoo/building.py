"""Writes a family's model folder: a tokenizer, a small config and weights drawn at random."""

from pathlib import Path
from typing import Any

from tests.zoo.families import SIZES, Family, vision


def build(family: Family, folder: Path, kind: Any = None) -> Path:
    """Write a model of a family and a tokenizer: an encoder without a head, a decoder with a language model's.

    Args:
        family: Of the model.
        folder: Where to write; made when it does not exist.
        kind: transformers' `AutoModel...` class, where it is another.
    """
    import torch
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

    from tests.tiny_models import _tokenizer

    names = ("[CLS]", "[SEP]", "[PAD]") if family.encoder else ("<s>", "</s>", "<pad>")
    tokenizer = _tokenizer(*names, extra=["[MASK]"], pairs=family.encoder or family.model_type in _ENDED)
    tokenizer.mask_token = "[MASK]"
    if not family.encoder:
        tokenizer.bos_token, tokenizer.eos_token = names[:2]
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    config = configure(family, tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.model_max_length = 10**30  # the model's own limit is what counts
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind is None:
            kind = AutoModel if family.encoder or family.model_type in _ENDED else AutoModelForCausalLM
            if type(config) not in kind._model_mapping:
                kind = AutoModelForImageTextToText
        model = kind.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:  # upstream starts at 0.02, where layers hardly matter
                    parameter.mul_(3)
            if family.model_type != "canine":  # which hashes
                table = model.get_input_embeddings().weight
                table[tokenizer.pad_token_id] = table[-1]  # upstream starts at zero, which trained weights never are
        model.save_pretrained(folder)
    return folder


_ENDED = {"t5", "mt5", "umt5", "bart", "mbart", "openai-gpt", "ctrl"}
"""Model types whose texts end with the end token, and whose classifier's checkpoint needs no head."""


def configure(family: Family, tokenizer: Any) -> Any:
    """Return a family's config for a tokenizer."""
    from transformers import AutoConfig

    default = AutoConfig.for_model(family.model_type)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    ids = {name: number for name, number in ids.items() if number is not None}
    vocabulary = {"vocab_size": len(tokenizer) + 7, **ids}  # rounded up, as of real models
    fields = dict(family.fields)
    if "text_config" in fields:
        parts = dict(fields["text_config"])
        text = default.text_config
        if "model_type" in parts:
            text = AutoConfig.for_model(parts["model_type"])
        fields["text_config"] = {**_small(text), **vocabulary, **parts}
        if "model_type" not in parts:
            fields["text_config"]["model_type"] = text.model_type
        if fields["vision_config"].get("model_type") == "pixtral":
            fields["vision_config"] = {"model_type": "pixtral", **vision(image_size=28, head_dim=8)}
        return AutoConfig.for_model(family.model_type, **ids, **fields)
    fields = {**_small(default), **vocabulary, **fields}
    return AutoConfig.for_model(family.model_type, **{k: v for k, v in fields.items() if v is not None})


def _small(config: Any) -> dict[str, Any]:
    known = {**config.to_dict(), **dict.fromkeys(getattr(config, "attribute_map", {}))}
    return {name: size for name, size in SIZES.items() if name in known}
