"""Converts weights saved by Accelerate, DeepSpeed, the Trainer and PEFT to model folders."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onecurve.adapters.folder import base_of, described_in
from onecurve.config import ModelSection
from onecurve.conversion.merging import merged
from onecurve.conversion.target import Wanted, card, name_labels
from onecurve.conversion.weights import read_weights
from onecurve.errors import ConfigError
from onecurve.export.model_folder import save_alone
from onecurve.model.adapted import load_adapted
from onecurve.model.reading import load_config, load_tokenizer
from onecurve.model.remote_code import FLAG, told_by_flag

_AUTO_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
"""transformers' classes by PEFT's name for the kind of model."""
_NAMED = 5


def convert_weights(folder: Path, wanted: Wanted) -> str:
    """Write the weights of a folder as a model folder; return the class of the model.

    Config and tokenizer are the folder's own, else those of `wanted.config`.

    Raises:
        UserError: No weights, no config or no tokenizer, or they do not belong together.
    """
    weights = read_weights(folder)
    if any(name.startswith("base_model.model.") for name in weights):
        raise ConfigError(
            f"{folder} holds the state of a PEFT model, without the adapter's settings.",
            fix="Save the adapter with model.save_pretrained(FOLDER) where it was trained, and convert FOLDER.",
        )
    config, tokenizer = _config(folder, wanted), _tokenizer(folder, wanted)
    name_labels(config, wanted.labels)
    model = _build(folder, config, weights)
    save_alone(wanted.target, model, tokenizer, partial(card, folder, type(model).__name__))
    return type(model).__name__


def convert_adapter(folder: Path, wanted: Wanted) -> str:
    """Merge a PEFT adapter into its base, in float32, and write a model folder; return the class of the model.

    Raises:
        UserError: The adapter or its base cannot be read, or it cannot be merged.
    """
    import transformers
    from peft import PeftConfig

    import onecurve.adapters.bottleneck  # noqa: F401  registers the bottleneck adapter with PEFT

    try:
        adapter = PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"adapter_config.json cannot be read: {_line(error)}", where=str(folder)) from None
    base, described = base_of(folder, adapter), described_in(folder)
    # also before transformers asks the hub for a base folder that is gone
    trusted, named = wanted.trust_remote_code, f"It is the base that {folder / 'adapter_config.json'} names."
    own = _told(load_config, base, trusted, named)
    given = Wanted(wanted.target, wanted.config or base, trust_remote_code=trusted)
    config = _config(described, given) if wanted.config or (described / "config.json").is_file() else own
    tokenizer = _tokenizer(folder, given)
    name_labels(config, wanted.labels)
    kind = _AUTO_CLASSES.get(str(adapter.task_type)) or (config.architectures or ["AutoModel"])[0]
    try:
        options = {"config": config, "dtype": "float32", "revision": adapter.revision or "main"}
        options["trust_remote_code"] = trusted
        model = load_adapted(folder, getattr(transformers, kind), base, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{folder} cannot be put on its base: {_line(error)}", fix=_CONFIG_OR_LABELS) from None
    model = merged(model)
    save_alone(wanted.target, model, tokenizer, partial(card, folder, type(model).__name__))
    return type(model).__name__


_CONFIG_OR_LABELS = "Name a --config that fits; for a classifier, its labels in the order of their ids with --labels."


def _config(folder: Path, wanted: Wanted) -> Any:
    own = (folder / "config.json").is_file()
    if not own and wanted.config is None:
        raise ConfigError(
            f"{folder} has no config.json.", fix="Name the model it was trained from, a folder or hub name: --config."
        )
    return _told(load_config, str(folder) if own else str(wanted.config), wanted.trust_remote_code)


def _tokenizer(folder: Path, wanted: Wanted) -> Any:
    own = any((folder / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json"))
    if not own and wanted.config is None:
        raise ConfigError(
            f"{folder} has no tokenizer.", fix="Name the model it was trained from, a folder or hub name: --config."
        )
    return _told(load_tokenizer, str(folder) if own else str(wanted.config), wanted.trust_remote_code)


def _line(error: Exception) -> str:
    """Return the first informative line: torch's first line is only a heading."""
    lines = [line.strip() for line in str(error).strip().split("\n")]
    return next((line for line in lines if not line.endswith(":")), lines[0])


def _told(load: Any, path: str, trusted: bool, fix: str = "Give --config a model folder or hub name.") -> Any:
    """Load from a path, telling a mistake in the words of this command: there is no recipe here."""
    try:
        with told_by_flag():
            return load(ModelSection(path=path, trust_remote_code=trusted))
    except ConfigError as error:
        if error.where == FLAG:
            raise
        raise ConfigError(error.what, fix=fix) from None


def _build(folder: Path, config: Any, weights: dict[str, Tensor]) -> Any:
    floating = {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()}
    dtype = max(floating, key=lambda dtype: dtype.itemsize, default=torch.float32)
    kind = _class_of(config, set(weights))
    model, found = kind.from_pretrained(
        None,
        config=config,
        state_dict=dict(weights),
        dtype=dtype,
        ignore_mismatched_sizes=True,  # said below, by name
        output_loading_info=True,
    )
    problems = [
        *(f"{name} is missing" for name in sorted(found["missing_keys"])),
        *(f"{name} is not the model's" for name in sorted(found["unexpected_keys"])),
        *(f"{name} is {list(there)}, not {list(here)}" for name, there, here in sorted(found["mismatched_keys"])),
    ]
    if problems:
        more = f" and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        raise ConfigError(
            f"The weights of {folder} are not those of a {kind.__name__} as the config has it: "
            f"{'; '.join(problems[:_NAMED])}{more}.",
            fix=_CONFIG_OR_LABELS,
        )
    return model


def _class_of(config: Any, names: set[str]) -> Any:
    """Find the class whose parameters are called most nearly like the weights: a config may name the base's."""
    kinds = list(_classes(config))
    if not kinds:
        raise ConfigError(f"{config.model_type!r} models are not text models that transformers knows.")
    return min(kinds, key=lambda kind: len(_parameters(kind, config) ^ names))


def _classes(config: Any) -> Iterator[Any]:
    import transformers

    for name in getattr(config, "auto_map", {}):  # code of its own, which is trusted, or it would not be named here
        if name.startswith("AutoModel"):
            with torch.device("meta"):
                yield type(getattr(transformers, name).from_config(config, trust_remote_code=True))
    for name in dict.fromkeys([*(config.architectures or []), *_AUTO_CLASSES.values(), "AutoModelForMaskedLM"]):
        kind = getattr(transformers, name, None)
        mapping = getattr(kind, "_model_mapping", None)
        if mapping is None and kind is not None:
            yield kind
        elif mapping is not None and type(config) in mapping:
            found = mapping[type(config)]
            yield found[0] if isinstance(found, tuple) else found


def _parameters(kind: Any, config: Any) -> set[str]:
    with torch.device("meta"):
        model = kind(config)
    tied = set(getattr(model, "all_tied_weights_keys", ()))
    return set(model.state_dict()) - tied
