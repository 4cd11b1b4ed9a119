"""The tokenizer as the run uses it, and how many tokens the model can read."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from onecurve.config import ModelSection
from onecurve.content.labels import model_labels
from onecurve.errors import ConfigError
from onecurve.machine.hub import reachable
from onecurve.tasks.base import reads_last_position

_SET_TOKENIZER = "Check model.path and the network, or set model.tokenizer to the tokenizer's folder or hub name."
_NAMED = 5
_CONVERT = (
    "A checkpoint of onecurve, Accelerate or DeepSpeed becomes a model folder with `onecurve checkpoint convert`."
)


@dataclass(frozen=True)
class Reading:
    """How the run's model reads text; each part is loaded when it is first asked for."""

    section: ModelSection
    asked_max_length: int | None
    auto_processor: Callable[[], type]
    """Returns the transformers class that loads what reads the rows."""
    reserved: int = 0
    """Positions that an adapter's virtual tokens take."""

    @cached_property
    def config(self) -> Any:
        """The model's transformers config, with the id that this tokenizer pads with."""
        _refuse_adapter(self.section.path)
        config = load_config(self.section)
        set_padding(config, self.tokenizer, pretrained=self.section.init == "pretrained")
        if reads_last_position(config):
            self.tokenizer.padding_side = "left"
        check_vocabulary(self.section, self.tokenizer, _of_text(config).vocab_size)
        return config

    @cached_property
    def labels(self) -> list[str]:
        """The labels that the model's config names, in the order of its head's rows; none where weights are drawn."""
        return model_labels(self.config) if self.section.init == "pretrained" else []

    @cached_property
    def processor(self) -> Any:
        """What reads the rows: a tokenizer that is able to pad, or another processor."""
        kind: Any = self.auto_processor()
        return load_tokenizer(self.section) if kind.__name__ == "AutoTokenizer" else load_processor(self.section, kind)

    @property
    def tokenizer(self) -> Any:
        """The processor, or the part of it that reads text."""
        return getattr(self.processor, "tokenizer", self.processor)

    @cached_property
    def max_length(self) -> int:
        """Tokens an example may have."""
        return resolve_max_length(self.asked_max_length, self.tokenizer, self.config, self.reserved)


def check_vocabulary(section: ModelSection, tokenizer: Any, size: int) -> None:
    """Check that the model has a row for each token, or is given one.

    Args:
        section: Its `add_tokens` name the tokens that get a new row.
        tokenizer: With them.
        size: The model's vocabulary.

    Raises:
        ConfigError: A token without a row, or one to add that has one.
    """
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= size}
    if unnamed := sorted(beyond.keys() - {*(section.add_tokens or ())}, key=beyond.__getitem__):
        told = ", ".join(unnamed[:_NAMED]) + (", ..." if len(unnamed) > _NAMED else "")
        raise ConfigError(
            f"has {len(tokenizer)} tokens, but the model knows {size}: {told} would have no embedding.",
            where="model.tokenizer",
            fix=f"Take the tokenizer that belongs to the model, or train new embeddings: model.add_tokens: [{told}]",
        )
    if not section.add_tokens:
        return
    before = load_tokenizer(section.model_copy(update={"add_tokens": None})).get_vocab()
    if known := [token for token in section.add_tokens if before.get(token, size) < size]:
        raise ConfigError(
            f"the model knows {', '.join(known)} already.", where="model.add_tokens", fix="Remove what it knows."
        )


def set_padding(config: Any, tokenizer: Any, pretrained: bool) -> None:
    """Have a model's config name the id that its tokenizer pads with: in them a decoder finds a text's last token.

    With another id it would read the padding, and so score a text by what it is padded to.

    Args:
        config: Changed in place, and so is the part of it that is about text.
        tokenizer: Able to pad.
        pretrained: Whether weights exist that were trained with what the config says.

    Raises:
        ConfigError: No padding id, or one that the model does not know.
    """
    pad, text = tokenizer.pad_token_id, config.get_text_config()
    if pad is None:
        raise ConfigError("has no padding token, and no end or unknown token to use as one.", where="model.tokenizer")
    if pad >= text.vocab_size:
        raise ConfigError(
            f"pads with {tokenizer.pad_token!r}, which is {pad}, but the model knows {text.vocab_size} tokens.",
            where="model.tokenizer",
            fix="Take the tokenizer that belongs to the model.",
        )
    own = getattr(text, "pad_token_id", None)
    if pretrained and own not in (None, pad) and _counts_from_padding(config):
        return  # these weights know the positions they were trained with, and padding, which comes last, moves none
    for part in (config, text):
        part.pad_token_id = pad


def _counts_from_padding(config: Any) -> bool:
    """Whether a model counts its positions from the padding id, as RoBERTa does."""
    return _first_position(config) > 0


def _first_position(config: Any) -> int:
    """Return the id of a text's first position: RoBERTa and its kin count from behind the padding's."""
    if getattr(_of_text(config), "rope_parameters", None):
        return 0
    import torch
    from transformers import AutoModel

    if type(config) not in AutoModel._model_mapping:
        return 0
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    tables = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    return max((own + 1 for table in tables if (own := getattr(table, "padding_idx", None)) is not None), default=0)


def load_config(section: ModelSection) -> Any:
    """Load the model's transformers config.

    Raises:
        ConfigError: Nothing there that transformers can read.
    """
    from transformers import AutoConfig

    _check_local(section.path, "model.path", ("config.json",), _CONVERT)
    try:
        return AutoConfig.from_pretrained(section.path, revision=section.revision or "main")
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{section.path!r} has no model config that can be read: {_first_line(error)}",
            where="model.path",
            fix="Check the path, or the hub name and the network.",
        ) from None


def load_tokenizer(section: ModelSection) -> Any:
    """Load the tokenizer, with a padding token and the recipe's chat template.

    Raises:
        ConfigError: Nothing there that transformers can read.
    """
    from transformers import AutoTokenizer

    path = section.tokenizer or section.path
    key = "model.tokenizer" if section.tokenizer else "model.path"
    _check_local(path, key, ("tokenizer_config.json", "tokenizer.json", "vocab.txt", "vocab.json"), _SET_TOKENIZER)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=section.revision or "main")
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{path!r} has no tokenizer that can be read: {_first_line(error)}", where=key, fix=_SET_TOKENIZER
        ) from None
    if tokenizer.pad_token is None:
        # Safe where others mask the end token with it: labels never come from the padding id
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    tokenizer.add_tokens([token for token in section.add_tokens or () if token not in tokenizer.get_vocab()])
    if section.chat_template:
        try:
            tokenizer.chat_template = Path(section.chat_template).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"cannot be read: {error.strerror} ({section.chat_template}).", where="model.chat_template"
            ) from None
    return tokenizer


def load_processor(section: ModelSection, kind: Any) -> Any:
    """Load an image processor, a feature extractor, or a processor of several parts.

    Raises:
        ConfigError: Nothing there that transformers can read.
    """
    path = section.tokenizer or section.path
    key = "model.tokenizer" if section.tokenizer else "model.path"
    _check_local(path, key, ("preprocessor_config.json", "processor_config.json"), _SET_TOKENIZER)
    try:
        return kind.from_pretrained(path, revision=section.revision or "main")
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{path!r} has no processor that can be read: {_first_line(error)}", where=key, fix=_SET_TOKENIZER
        ) from None


def resolve_max_length(asked: int | None, tokenizer: Any, config: Any, reserved: int) -> int:
    """Return how many tokens an example may have: what was asked, else the model's limit.

    Raises:
        ConfigError: More was asked than the model can read, or nobody names a limit.
    """
    positions = _positions(config)
    room = positions - reserved if positions else None
    limits = [n for n in (room, tokenizer.model_max_length) if n and n < 10**9]  # 1e30: "no limit" upstream
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


def _positions(config: Any) -> int | None:
    """Return how many tokens a model has positions for; None where positions are relative and nothing limits them."""
    text = _of_text(config)
    stated = getattr(text, "max_position_embeddings", None)
    if not stated and not hasattr(text, "relative_attention_num_buckets"):  # T5's n_positions limits nothing
        stated = getattr(text, "n_positions", None)
    if not stated or stated < 0:  # -1: XLNet
        return None
    return stated - _first_position(config)


def _of_text(config: Any) -> Any:
    """Return a config, or of a model that sees too its part for text."""
    return config if hasattr(config, "vocab_size") else config.get_text_config()


def _refuse_adapter(path: str) -> None:
    # transformers would only say that there are no weights
    if (Path(path).expanduser() / "adapter_config.json").is_file():
        raise ConfigError(
            f"{path!r} is a PEFT adapter, but a run needs a whole model.",
            where="model.path",
            fix=f"Merge it into its base: onecurve checkpoint convert {path} FOLDER --merge",
        )


def _check_local(path: str, key: str, names: tuple[str, ...], fix: str) -> None:
    """Refuse what looks like a local folder but is none, before the hub is asked for it."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not any((folder / name).exists() for name in names):
            raise ConfigError(f"the folder {path!r} holds no {' or '.join(names)}.", where=key, fix=fix)
    elif folder.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1 or folder.exists():
        raise ConfigError(f"no such folder: {path!r}.", where=key)
    else:
        reachable()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
