"""How many positions a model has, and so how many tokens an example may have."""

from typing import Any

from onecurve.errors import ConfigError


def resolve_max_length(asked: int | None, tokenizer: Any, config: Any, reserved: int) -> int:
    """Return how many tokens an example may have: what was asked, else the model's limit.

    Raises:
        ConfigError: More was asked than the model can read, or nobody names a limit.
    """
    positions = num_positions(config)
    room = positions - reserved if positions else None
    limits = [n for n in (room, tokenizer.model_max_length) if n and n < 10**9]  # 1e30: "no limit" upstream
    if room is not None and room < 2:
        raise ConfigError(
            f"peft's {reserved} virtual tokens leave no room in the model's {positions} positions.",
            where="peft.num_virtual_tokens",
            fix="Lower it.",
        )
    if asked is None:
        if not limits:
            raise ConfigError("must be set: this model has no length limit.", where="data.max_length", fix="Set it.")
        return min(limits)
    if room and asked > room:
        taken = f" less the {reserved} of peft's virtual tokens" if reserved else ""
        raise ConfigError(
            f"must be at most {room}, the positions this model has{taken}; got {asked}.", where="data.max_length"
        )
    return asked


def num_positions(config: Any) -> int | None:
    """Return how many tokens a model has positions for; None where positions are relative and nothing limits them."""
    text = of_text(config)
    stated = getattr(text, "max_position_embeddings", None)
    if not stated and not hasattr(text, "relative_attention_num_buckets"):  # T5's n_positions limits nothing
        stated = getattr(text, "n_positions", None)
    if not stated or stated < 0:  # -1: XLNet
        return None
    return stated - first_position(config)


def first_position(config: Any) -> int:
    """Return the id of a text's first position: RoBERTa and its kin count from behind the padding's."""
    if getattr(of_text(config), "rope_parameters", None):
        return 0
    import torch
    from transformers import AutoModel

    if type(config) not in AutoModel._model_mapping:
        return 0
    with torch.device("meta"):
        model = AutoModel.from_config(config, trust_remote_code=True)  # code that is not trusted is not in the config
    tables = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    return max((own + 1 for table in tables if (own := getattr(table, "padding_idx", None)) is not None), default=0)


def of_text(config: Any) -> Any:
    """Return a config, or of a model that sees too its part for text."""
    return config if hasattr(config, "vocab_size") else config.get_text_config()
