"""The languages of multilingual tokenizers (mBART, M2M100, NLLB): set, and told to `generate`."""

from typing import Any

from onecurve.config import nearest
from onecurve.errors import ConfigError

_KEYS = {"src_lang": "task.source_lang", "tgt_lang": "task.target_lang"}


def set_languages(tokenizer: Any, source: str | None, target: str | None) -> None:
    """Set the languages that a tokenizer marks sources and targets with; it is saved with them.

    Args:
        tokenizer: Of any model; most have no languages.
        source: By the tokenizer's own name; None: as it was saved with.
        target: See `source`.

    Raises:
        ConfigError: It knows no such language, has none at all, or needs one.
    """
    if not hasattr(tokenizer, "src_lang"):
        for key, asked in zip(_KEYS.values(), (source, target), strict=True):
            if asked:
                raise ConfigError(
                    f"this model's tokenizer ({type(tokenizer).__name__}) marks no languages.",
                    where=key,
                    fix="Remove it. If the model is told the language by its input, set task.prefix, such as "
                    "'translate English to German: ' (T5) or '>>deu<< ' (multilingual Marian models).",
                )
        return
    for name, asked in zip(_KEYS, (source, target), strict=True):
        language = asked or tokenizer.init_kwargs.get(name)
        _check(tokenizer, _KEYS[name], language)
        setattr(tokenizer, name, language)  # the same again too: its file may have been saved with other marks
        tokenizer.init_kwargs[name] = language  # what `save_pretrained` writes


def language_to_write(tokenizer: Any) -> dict[str, Any]:
    """Return what has `generate` write in the tokenizer's target language, as the model learnt it.

    Where targets begin with their language, that token is forced at the first place; where they end with it (mBART),
    the decoder, which reads targets shifted round, begins with it.
    """
    if not hasattr(tokenizer, "src_lang"):
        return {}
    marks = tokenizer(text_target="")["input_ids"]
    (language,) = (token for token in marks if token != tokenizer.eos_token_id)
    return {"forced_bos_token_id" if marks[0] == language else "decoder_start_token_id": language}


def _check(tokenizer: Any, key: str, language: str | None) -> None:
    known = list(getattr(tokenizer, "lang_code_to_id", {}) or _beside_the_named(tokenizer))
    if language is None:
        raise ConfigError(
            "must be set: this model's tokenizer marks each text with its language.",
            where=key,
            fix=f"It knows {', '.join(known[:6])} and {len(known) - 6} more.",
        )
    if language not in known:
        raise ConfigError(
            f"this model's tokenizer has no language {language!r}.", where=key, fix=nearest(language, known)
        )


def _beside_the_named(tokenizer: Any) -> list[str]:
    """Return the special tokens other than those with a role (end, padding, ...)."""
    named = set(tokenizer.special_tokens_map.values()) if hasattr(tokenizer, "special_tokens_map") else set()
    return [token for token in tokenizer.all_special_tokens if token not in named]
