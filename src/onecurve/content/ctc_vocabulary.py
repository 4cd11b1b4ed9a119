"""The processor of a model that learns characters by CTC: the model's own, or one with the recipe's vocabulary."""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from onecurve.errors import ConfigError

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "|")
"""The first ids of a new vocabulary, as wav2vec2's have them: the blank, two that are never learnt, the unknown
character, and the space between words."""
_TOKENIZER_FILES = ("vocab.json", "tokenizer.json")


@dataclass(frozen=True)
class CtcProcessor:
    """Loads a feature extractor with a tokenizer that decodes CTC."""

    vocabulary: str | None
    """Characters in the order of their ids; None: the tokenizer lies with the model."""

    def from_pretrained(self, path: str, **options: Any) -> Any:
        """Return transformers' processor.

        Args:
            path: A folder or the name of a repository.
            **options: revision, trust_remote_code.

        Raises:
            ConfigError: No tokenizer and no vocabulary, both, or a tokenizer of another kind.
            OSError: No feature extractor, as transformers says it.
        """
        from transformers import AutoFeatureExtractor

        extractor = AutoFeatureExtractor.from_pretrained(path, **options)
        own = _own_tokenizer(path, options)
        if self.vocabulary is None:
            if own is None:
                raise ConfigError(
                    f"must be set: {path!r} has no tokenizer.",
                    where="task.vocabulary",
                    fix="Set it to every character of the texts but the space, such as "
                    '"abcdefghijklmnopqrstuvwxyz\'"; texts may be simplified by task.case and task.remove.',
                )
            return _processor(extractor, own)
        tokenizer = _new_tokenizer(self.vocabulary)
        if own is not None and own.get_vocab() != tokenizer.get_vocab():
            raise ConfigError(
                f"{path!r} has a tokenizer with other characters, which the rows of its head belong to.",
                where="task.vocabulary",
                fix="Remove it; for a new head set model.tokenizer to a folder with preprocessor_config.json alone.",
            )
        return _processor(extractor, tokenizer)


def _own_tokenizer(path: str, options: dict[str, Any]) -> Any:
    """Return the tokenizer that lies with a model; None without one."""
    from transformers import AutoTokenizer, Wav2Vec2CTCTokenizer
    from transformers.utils import cached_file

    kept = {"revision": options.get("revision"), "_raise_exceptions_for_missing_entries": False}
    if not any(cached_file(path, name, **kept) for name in _TOKENIZER_FILES):
        return None
    tokenizer = AutoTokenizer.from_pretrained(path, **options)
    if not isinstance(tokenizer, Wav2Vec2CTCTokenizer):
        raise ConfigError(
            f"{path!r} has a {type(tokenizer).__name__}; speech_recognition decodes with a Wav2Vec2CTCTokenizer.",
            where="model.path",
            fix="Take a model that was made for CTC on characters, such as wav2vec2, HuBERT or WavLM.",
        )
    return tokenizer


def _new_tokenizer(characters: str) -> Any:
    from transformers import Wav2Vec2CTCTokenizer

    ids = {token: number for number, token in enumerate([*SPECIAL, *characters])}
    with TemporaryDirectory() as folder:
        file = Path(folder, "vocab.json")
        file.write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
        return Wav2Vec2CTCTokenizer(str(file))


def _processor(extractor: Any, tokenizer: Any) -> Any:
    from transformers import Wav2Vec2BertProcessor, Wav2Vec2Processor

    kind = Wav2Vec2BertProcessor if type(extractor).__name__ == "SeamlessM4TFeatureExtractor" else Wav2Vec2Processor
    return kind(feature_extractor=extractor, tokenizer=tokenizer)
