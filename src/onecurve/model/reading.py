"""The tokenizer as the run uses it, and how many tokens the model can read."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

from onecurve.adapters import virtual_tokens
from onecurve.adapters.folder import Continued, described_in, is_adapter
from onecurve.config import ModelSection, Recipe
from onecurve.content.labels import model_labels
from onecurve.errors import ConfigError
from onecurve.machine.hub import reachable
from onecurve.model.positions import first_position, num_positions, of_text, resolve_max_length
from onecurve.model.remote_code import check_trusted, is_refusal, refuse_code
from onecurve.tasks.base import Task, reads_last_position

_SET_TOKENIZER = "Check model.path and the network, or set model.tokenizer to the tokenizer's folder or hub name."
_TOKENIZERS = ("tokenizer_config.json", "tokenizer.json", "vocab.txt", "vocab.json")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_NO_HUB = "Check the path; or fetch it where there is a network, with `onecurve data stage RECIPE`."
_NAMED = 5
UNLIMITED = 2**31 - 1
"""The length that an example may have where nothing limits it: the most that the examples' index can hold."""
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

    @classmethod
    def of(cls, recipe: Recipe, task: Task) -> "Reading":
        """Return what a recipe's run reads its rows with."""
        return cls(recipe.model, recipe.data.max_length, task.auto_processor, virtual_tokens(recipe.peft))

    @cached_property
    def source(self) -> ModelSection:
        """The model section; of an adapter, where its config and its tokenizer lie: with it, else with its base."""
        if self.section.init == "random" or not is_adapter(self.section.path):
            return self.section
        continued = Continued.read(self.section.path)
        own, described = continued.folder, described_in(continued.folder)
        tokenizer = own if any((own / name).is_file() for name in _TOKENIZERS + _PROCESSORS) else continued.base
        found: dict[str, Any] = {}
        if not self.section.tokenizer:
            revision = None if tokenizer == own else continued.revision
            found = {"tokenizer": str(tokenizer), "tokenizer_revision": revision}
        if (described / "config.json").is_file():
            found["path"] = str(described)
        else:
            found |= {"path": continued.base, "revision": continued.revision}
        return self.section.model_copy(update=found)

    @cached_property
    def config(self) -> Any:
        """The model's transformers config, with the id that this tokenizer pads with."""
        config = load_config(self.source)
        check_trusted(self.source)
        if not self.reads_text:
            return config
        set_padding(config, self.tokenizer, pretrained=self.section.init == "pretrained")
        if reads_last_position(config):
            self.tokenizer.padding_side = "left"
        if self.processor is self.tokenizer:  # else it names what a head says, and no embeddings are looked up
            check_vocabulary(self.section, self.tokenizer, of_text(config).vocab_size)
        return config

    @cached_property
    def labels(self) -> list[str]:
        """The labels that the model's config names, in the order of its head's rows; none where weights are drawn."""
        return model_labels(self.config) if self.section.init == "pretrained" else []

    @cached_property
    def processor(self) -> Any:
        """What reads the rows: a tokenizer that is able to pad, or another processor."""
        kind: Any = self.auto_processor()
        if kind.__name__ == "AutoTokenizer":
            return load_tokenizer(self.source)
        self._refuse_for_text()
        return load_processor(self.source, kind)

    def _refuse_for_text(self) -> None:
        for name in ("add_tokens", "chat_template"):
            if getattr(self.section, name):
                raise ConfigError("this task's models read no text.", where=f"model.{name}", fix="Remove it.")

    @property
    def tokenizer(self) -> Any:
        """The processor, or the part of it that reads text."""
        return getattr(self.processor, "tokenizer", self.processor)

    @property
    def reads_text(self) -> bool:
        """Whether there is a tokenizer."""
        from transformers import PreTrainedTokenizerBase

        return isinstance(self.tokenizer, PreTrainedTokenizerBase)

    @cached_property
    def max_length(self) -> int:
        """The length that an example may have, in the task's own units: tokens, where it reads text alone."""
        if self.processor is not self.tokenizer or not self.reads_text:
            return self.asked_max_length or UNLIMITED
        return resolve_max_length(self.asked_max_length, self.tokenizer, self.config, self.reserved)

    @cached_property
    def positions(self) -> int | None:
        """How many tokens the model has positions for, an adapter's virtual ones left aside; None without a limit."""
        positions = num_positions(self.config)
        return positions - self.reserved if positions else None


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
    if pretrained and own not in (None, pad) and first_position(config) > 0:
        return  # these weights know the positions they were trained with, and padding, which comes last, moves none
    for part in (config, text):
        part.pad_token_id = pad


def load_config(section: ModelSection) -> Any:
    """Load the model's transformers config.

    Raises:
        ConfigError: Nothing there that transformers can read.
    """
    from transformers import AutoConfig

    _check_local(section.path, "model.path", ("config.json",), _CONVERT)
    try:
        config = AutoConfig.from_pretrained(
            section.path, revision=section.revision or "main", trust_remote_code=section.trust_remote_code
        )
        if not section.trust_remote_code and hasattr(config, "auto_map"):
            del config.auto_map  # transformers has classes of its own for it, and nothing else may run
        config.architectures = config.architectures or []  # where a type has several classes, None is an error upstream
        return config
    except (OSError, ValueError, KeyError, ImportError) as error:
        if is_refusal(error):
            raise refuse_code(section.path, section.revision) from None
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

    path, revision, key = _place_of_tokenizer(section)
    _check_local(path, key, _TOKENIZERS, _SET_TOKENIZER)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, revision=revision or "main", trust_remote_code=section.trust_remote_code
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        if is_refusal(error):
            raise refuse_code(path, revision) from None
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


def _place_of_tokenizer(section: ModelSection) -> tuple[str, str | None, str]:
    """Return its folder or hub name, its revision, and the key that says so."""
    if section.tokenizer:
        return section.tokenizer, section.tokenizer_revision, "model.tokenizer"
    return section.path, section.revision, "model.path"


def load_processor(section: ModelSection, kind: Any) -> Any:
    """Load an image processor, a feature extractor, or a processor of several parts.

    Raises:
        ConfigError: Nothing there that transformers can read.
    """
    path, revision, key = _place_of_tokenizer(section)
    _check_local(path, key, _PROCESSORS, _SET_TOKENIZER)
    # Pillow resizes with other pixels than torchvision, which is not everywhere: the curve must not depend on that
    backend = {"backend": "pil"} if kind.__name__ == "AutoImageProcessor" else {}
    try:
        return kind.from_pretrained(
            path, revision=revision or "main", trust_remote_code=section.trust_remote_code, **backend
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        if is_refusal(error):
            raise refuse_code(path, revision) from None
        raise ConfigError(
            f"{path!r} has no processor that can be read: {_first_line(error)}", where=key, fix=_SET_TOKENIZER
        ) from None


def _check_local(path: str, key: str, names: tuple[str, ...], fix: str) -> None:
    """Refuse what looks like a local folder but is none, before the hub is asked for it."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not any((folder / name).exists() for name in names):
            raise ConfigError(f"the folder {path!r} holds no {' or '.join(names)}.", where=key, fix=fix)
    elif folder.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1 or folder.exists():
        raise ConfigError(f"no such folder: {path!r}.", where=key)
    elif not reachable() and not _is_cached(path, names):
        near = get_close_matches(folder.name, [other.name for other in folder.parent.glob("*")], 1)
        raise ConfigError(
            f"there is no folder {path!r} in {Path.cwd()}, and the hub, where it could be a name, cannot be reached.",
            where=key,
            fix=f"Did you mean {str(folder.parent / near[0])!r}?" if near else _NO_HUB,
        )


def _is_cached(path: str, names: tuple[str, ...]) -> bool:
    """Whether the local copy of the hub has one of these files of a repository, of any revision."""
    from huggingface_hub import constants

    copies = Path(constants.HF_HUB_CACHE, f"models--{path.replace('/', '--')}", "snapshots")
    return any(next(copies.glob(f"*/{name}"), None) for name in names)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
