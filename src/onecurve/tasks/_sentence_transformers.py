"""The files by which sentence-transformers knows how a model makes vectors: read, and written."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from onecurve.errors import ConfigError

_MODULES, _TRANSFORMER, _PROMPTS = "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"
_POOLING = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
"""Its names of what we have too."""
_FLAGS = {
    "cls_token": "cls",
    "mean_tokens": "mean",
    "max_tokens": "max",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean_tokens": "weightedmean",
    "lasttoken": "lasttoken",
}
"""What stands behind `pooling_mode_` in the files of older versions, and the mode that it names."""
_KNOWN = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
_DOCUMENT = ("document", "passage", "corpus")
"""Names of the prompt for documents, in its order."""

Read = Callable[[str], Any]
"""Returns the content of a JSON file of the model's folder; None where it is not there."""


class Said(NamedTuple):
    """What a model's files say."""

    values: Mapping[str, Any]
    """By setting of text embedding; empty where sentence-transformers has not written the folder."""
    files: Mapping[str, str]
    """Setting -> the file that says it."""
    longest: int | None
    """Tokens of a text."""


NOTHING = Said({}, {}, None)


def said_of_vectors(read: Read, path: str) -> Said:
    """Return what the files beside a model say of its vectors.

    Args:
        read: Reads one.
        path: The model's, for messages.

    Raises:
        ConfigError: They cannot be understood, or the vectors are made in a way that text embedding does not have.
    """
    modules = read(_MODULES)
    if modules is None:
        return NOTHING
    try:
        kinds = [_kind(module["type"]) for module in modules]
        if kinds not in _KNOWN:
            raise _refused(path, f"{_MODULES} has {', '.join(kinds)}, and only {' and '.join(_KNOWN[1])} are trained")
        if modules[0]["path"]:
            raise _refused(path, f"its transformer lies in {modules[0]['path']!r}, and not in the folder itself")
        pooling = f"{modules[1]['path']}/config.json"
        values: dict[str, Any] = {"normalize": len(kinds) > 2, "pooling": _pooling(read(pooling), pooling, path)}
        prompts, similarity = _prompts_and_similarity(read(_PROMPTS) or {}, path)
        _check_prompts(read(pooling), prompts, path)
        longest = _longest(read, path)
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise _refused(path, f"{_MODULES} and its files cannot be understood: {error!r}") from None
    files = {"normalize": _MODULES, "pooling": pooling, **dict.fromkeys((*prompts, "similarity"), _PROMPTS)}
    return Said({**values, **prompts, "similarity": similarity}, files, longest)


def _refused(path: str, why: str) -> ConfigError:
    return ConfigError(
        f"{path!r} is a model of sentence-transformers that text_embedding cannot go on with: {why}.",
        where="model.path",
        fix=f"Choose another, or, to train its transformer alone, a copy of the folder without {_MODULES}.",
    )


def _kind(name: str) -> str:
    """Return a module's class, with its package where that is another: its code is not ours to know."""
    return name.rpartition(".")[2] if name.startswith("sentence_transformers.") else name


def _pooling(config: Any, name: str, path: str) -> str:
    if config is None:
        raise _refused(path, f"{name}, which {_MODULES} names, is not there")
    found = config.get("pooling_mode", [mode for flag, mode in _FLAGS.items() if config.get(f"pooling_mode_{flag}")])
    modes = ([found] if isinstance(found, str) else list(found)) or ["mean"]
    if len(modes) != 1 or modes[0] not in _POOLING:
        raise _refused(path, f"{name} has the pooling {' and '.join(modes)}, and there is one of {', '.join(_POOLING)}")
    return _POOLING[modes[0]]


def _prompts_and_similarity(config: Mapping[str, Any], path: str) -> tuple[dict[str, str], str]:
    prompts = config.get("prompts") or {}
    document = next((prompts[name] for name in _DOCUMENT if name in prompts), "")
    similarity = config.get("similarity_fn_name") or "cosine"
    if similarity not in ("cosine", "dot"):
        raise _refused(path, f"{_PROMPTS} has the similarity {similarity}, and there are cosine and dot")
    return {"query_prompt": prompts.get("query") or "", "document_prompt": document or ""}, similarity


def _check_prompts(pooling: Mapping[str, Any], prompts: Mapping[str, str], path: str) -> None:
    if any(prompts.values()) and not pooling.get("include_prompt", True):
        raise _refused(path, "its pooling leaves out the tokens of the prompts (include_prompt is false)")


def _longest(read: Read, path: str) -> int | None:
    config, tokenizer = read(_TRANSFORMER) or {}, read("tokenizer_config.json") or {}
    if (task := config.get("transformer_task", "feature-extraction")) != "feature-extraction":
        raise _refused(path, f"its transformer is one for {task}")
    if config.get("do_lower_case") and not tokenizer.get("do_lower_case"):
        raise _refused(path, f"{_TRANSFORMER} sets do_lower_case, and its tokenizer keeps capitals")
    found = config.get("max_seq_length") or tokenizer.get("model_max_length")
    return found if isinstance(found, int) and found > 0 else None


def files_of_vectors(settings: Any, config: Any, max_length: int) -> dict[str, Any]:
    """Return what sentence-transformers needs to build a model: its modules, their settings, the prompts.

    Args:
        settings: Of text embedding.
        config: The model's.
        max_length: Tokens that a text may have.
    """
    modules = {"": "Transformer", "1_Pooling": "Pooling"}
    modules |= {"2_Normalize": "Normalize"} if settings.normalize else {}
    modes = {name for name, own in _POOLING.items() if own == settings.pooling}
    return {
        _MODULES: [
            {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for at, (path, kind) in enumerate(modules.items())
        ],
        _TRANSFORMER: {"max_seq_length": max_length, "do_lower_case": False},
        "1_Pooling/config.json": {
            "word_embedding_dimension": config.get_text_config().hidden_size,
            **{f"pooling_mode_{flag}": mode in modes for flag, mode in _FLAGS.items()},
            "include_prompt": True,
        },
        _PROMPTS: {
            "prompts": {"query": settings.query_prompt, "document": settings.document_prompt},
            "default_prompt_name": None,
            "similarity_fn_name": settings.similarity,
        },
    }


def notes_on(asked: Mapping[str, Any], said: Said, path: str) -> list[str]:
    """Return for the summary which settings a model's files gave, and which of the recipe's differ from them.

    Args:
        asked: The settings that the recipe has.
        said: What the files say.
        path: The model's.
    """
    given: dict[str, list[str]] = {}
    for name, value in said.values.items():
        if name not in asked:
            given.setdefault(said.files[name], []).append(f"task.{name} {_shown(value)}")
    told = [f"{', '.join(names)}: as {file} of {path} says" for file, names in given.items()]
    differing = [name for name, value in said.values.items() if asked.get(name, value) != value]
    return told + [
        f"task.{name} is {_shown(asked[name])}, and {said.files[name]} of {path} says {_shown(said.values[name])}"
        for name in differing
    ]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return value if value.isalpha() else repr(value)
