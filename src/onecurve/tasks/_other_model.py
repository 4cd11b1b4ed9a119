"""What tasks check of a model beside the one that is trained: its folder, its tokens and its labels."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onecurve.content.labels import are_placeholders, model_labels
from onecurve.errors import ConfigError
from onecurve.tasks.base import OtherModel, Row

_NAMED, _SHOWN = 3, 80
_PROBES = (
    "The quick brown fox, it's 3.14 % & don't! UPPER lower MiXeD",
    "  two  spaces, a\ttab \n\n and lines\r\n ",
    "12345678901234567890 007 2,500.75 1e-5",
    "na\u00efve cafe\u0301 \ufb01ne \uff21 \u00bd \u2014 \u201cso\u201d\u2026 \u0130 \u00df",
    "\u4e2d\u6587\u5b57 \u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4 \u0627\u0644\u0639\u0631\u0628\u064a\u0629 "
    "\u0939\u093f\u0928\u094d\u0926\u0940",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \u200b\u00a0\ufeff",
    "def f(x):\n    return x**2  # <b>__init__</b>",
    "",
)
"""Texts on which tokenizers of one vocabulary differ: case, spaces, digits, Unicode forms, scripts, code, none."""
_TRAIN_IT = "Train that model first, or name another folder or a model of the hub."


def check_folder(other: OtherModel) -> None:
    """Check that a model that is named by a path is there, whole.

    Raises:
        ConfigError: No folder with a config.json, an adapter, or a revision of a folder.
    """
    path = Path(other.path).expanduser()
    is_local = other.path.startswith((".", "/", "~")) or other.path.count("/") > 1 or path.exists()
    if is_local and not path.exists():
        raise ConfigError(f"no such folder: {other.path!r}.", where=other.key, fix=_TRAIN_IT)
    if is_local and (path / "model" / "config.json").is_file() and not (path / "config.json").is_file():
        raise ConfigError(
            f"{other.path!r} is the directory of a run.", where=other.key, fix=f"Set it to {str(path / 'model')!r}."
        )
    if is_local and other.revision:
        raise ConfigError(
            f"has no effect: {other.path!r} is a folder here.", where=f"{other.key}_revision", fix="Remove it."
        )
    if is_local and (path / "adapter_config.json").is_file():
        raise ConfigError(
            f"{other.path!r} is an adapter, and a whole model is needed.",
            where=other.key,
            fix="Merge it into its base: onecurve checkpoint convert FOLDER OUTPUT --merge.",
        )
    if is_local and not (path / "config.json").is_file():
        raise ConfigError(f"must be a folder with a config.json or a hub name; got {other.path!r}.", where=other.key)


def check_tokens(other: OtherModel, tokenizer: Any, rows: Sequence[Row] = ()) -> None:
    """Check that a model reads the same tokens under the same ids, and that texts are cut into them alike.

    Its `eos` and `pad` may be other tokens: the run's tokenizer alone ends and fills texts, as where a chat model is
    the teacher of a base model.

    Args:
        other: The model.
        tokenizer: The run's, which makes the ids that both read.
        rows: Some of the run's, whose texts are tried too.

    Raises:
        ConfigError: It has no tokenizer that can be read, or one with another vocabulary, or that encodes otherwise.
    """
    from transformers import AutoTokenizer

    found = read_part(AutoTokenizer, other, "tokenizer")
    _check_vocabulary(other, tokenizer.get_vocab(), found.get_vocab())
    added = {token.content for one in (tokenizer, found) for token in one.added_tokens_decoder.values()}
    for text in (*_PROBES, *(f"a {token} b{token}c" for token in sorted(added)), *_texts(rows)):
        ours, theirs = (one(text, verbose=False)["input_ids"] for one in (tokenizer, found))
        if ours != theirs:
            raise ConfigError(
                f"{other.path!r} was trained on texts that are cut into tokens otherwise than by this run's tokenizer: "
                f"of {text[:_SHOWN]!r}, {_apart(tokenizer, ours, theirs)}.",
                where=other.key,
                fix="Choose a model with the same tokenizer (normalizer, pre-tokenizer, added and special tokens too).",
            )


def _apart(tokenizer: Any, ours: list[int], theirs: list[int]) -> str:
    """Show the first tokens that two encodings of a text do not share."""
    first = next(place for place in range(len(ours) + 1) if ours[place : place + 1] != theirs[place : place + 1])
    shown = [tokenizer.convert_ids_to_tokens(ids[first : first + _NAMED]) for ids in (ours, theirs)]
    return f"token {first + 1} and the following are {shown[0] or 'none'} here and {shown[1] or 'none'} there"


def _texts(values: Any) -> Iterator[str]:
    """Yield the texts of rows, whatever they are nested in."""
    if isinstance(values, str):
        yield values
    elif isinstance(values, Mapping | Sequence) and not isinstance(values, bytes):
        for value in values.values() if isinstance(values, Mapping) else values:
            yield from _texts(value)


def _check_vocabulary(other: OtherModel, ours: dict[str, int], theirs: dict[str, int]) -> None:
    if ours == theirs:
        return
    apart = sorted((token for token in ours if theirs.get(token) != ours[token]), key=ours.__getitem__)
    apart += sorted((token for token in theirs if token not in ours), key=theirs.__getitem__)
    told = "; ".join(
        f"{token!r} is {_place(ours, token)} here and {_place(theirs, token)} there" for token in apart[:_NAMED]
    )
    more = f"; and {len(apart) - _NAMED} more" if len(apart) > _NAMED else ""
    raise ConfigError(
        f"{other.path!r} has another vocabulary than this run's tokenizer, and both models read the same ids: "
        f"{told}{more}.",
        where=other.key,
        fix="Choose a model with the same tokenizer.",
    )


def check_labels(other: OtherModel, labels: list[str]) -> None:
    """Check that a classifier has the same labels in the same order.

    Args:
        other: The classifier.
        labels: The run's, in the order of their ids.

    Raises:
        ConfigError: It cannot be read, names no labels, or has others.
    """
    from transformers import AutoConfig

    config = read_part(AutoConfig, other, "config.json")
    # None where it was never trained by a loss of transformers' own choice, as of taggers
    if config.problem_type not in (None, "single_label_classification"):
        raise ConfigError(
            f"{other.path!r} was trained for {config.problem_type}: it does not choose one label of several.",
            where=other.key,
            fix="Choose a model of single_label_classification.",
        )
    theirs = model_labels(config)
    if theirs == labels:
        return
    if are_placeholders(theirs):
        what, fix = f"does not name its {len(theirs)} labels", f"Name them in its config.json, as id2label: {labels}."
    elif sorted(theirs) == sorted(labels):
        what, fix = f"has the labels in another order, {theirs}", f"Set task.labels: [{', '.join(theirs)}]"
    else:
        what, fix = f"predicts {theirs}", "Choose a model of the same labels, or map the data's to them by task.labels."
    raise ConfigError(f"{other.path!r} {what}; this run's labels are {labels}.", where=other.key, fix=fix)


def _place(vocabulary: dict[str, int], token: str) -> str:
    return f"token {vocabulary[token]}" if token in vocabulary else "no token"


def read_part(kind: Any, other: OtherModel, what: str) -> Any:
    """Load a part of a model by a transformers auto class; code that comes with it is not run."""
    path, revision = str(Path(other.path).expanduser()), other.revision or "main"
    try:
        return kind.from_pretrained(path, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        line = str(error).strip().partition("\n")[0]
        absent = "" if Path(path).exists() else f"There is no folder of this name in {Path.cwd()} either."
        raise ConfigError(f"the {what} of {other.path!r} cannot be read: {line}", where=other.key, fix=absent) from None
