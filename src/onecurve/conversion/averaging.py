"""The mean of several runs' models, or of their adapters, as a folder of the same kind.

Sources: Wortsman et al., Model soups, ICML 2022 (the uniform soup); McMahan et al., Communication-efficient learning of
deep networks, AISTATS 2017, algorithm 1 (FederatedAveraging: weights by numbers of examples).
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from onecurve.adapters.folder import CONFIG, Continued, is_adapter
from onecurve.checkpoint import read_state
from onecurve.checkpoint.folders import folder_name, steps
from onecurve.config import PeftSection, read_yaml
from onecurve.conversion.weights import read_weights
from onecurve.errors import ConfigError
from onecurve.model.task_file import TaskFile

ADAPTER = "adapter_model.safetensors"
_DRAWN = "weights drawn at random"
_NAMED = 3
_NOT_COPIED = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "README.md")
_OF_THE_SAVING = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}
_LINEAR = {"ia3"}
"""PEFT methods whose effect is linear in what they train, so that the mean of that is the mean of the effect."""
_NOT_LINEAR = ("use_dora", "alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config")
"""Settings of LoRA with which the effect is not linear in B, so that no mean of the factors is exact."""
_NOT_STACKED = ("alpha_pattern", "rank_pattern", "target_parameters", "use_bdlora")
"""Settings of LoRA with which adapters side by side are not their sum, or would need ranks of their own."""
_INIT = "init_lora_weights"
"""Nor are those whose rank says how much PEFT takes out of the base on loading, as with pissa and olora."""


@dataclass(frozen=True)
class Part:
    """One of the models."""

    name: str
    """What the user calls it."""
    folder: Path
    base: str
    """Where its training began; empty where nothing says."""

    @classmethod
    def read(cls, name: str) -> "Part":
        """Find a run's model/, or a model folder, and what it was trained from."""
        path = Path(name)
        folder = path / "model" if (path / "model").is_dir() else path
        if is_adapter(folder):
            adapter = Continued.read(str(folder))
            return cls(name, folder, f"{adapter.base}@{adapter.revision or ''}")
        if not (folder / "config.json").is_file():
            raise ConfigError(f"{name!r} is neither a run with a model/ nor a model folder.")
        recipe = folder.parent / "config.yaml"
        if not recipe.is_file():
            return cls(name, folder, "")
        model = read_yaml(recipe.read_text(encoding="utf-8"))["model"]
        begun = _DRAWN if model["init"] == "random" else model["path"]
        return cls(name, folder, f"{begun}@{model['revision'] or ''}")


def check_parts(parts: Sequence[Part]) -> str:
    """Check that models come from one base: only then do their weights lie where a mean of them is a model.

    Returns:
        What could not be checked; empty where everything was.

    Raises:
        ConfigError: Another base, kind, config, labels, task or tokenizer.
    """
    first, *others = parts
    for other in others:
        _check_kind(first, other)
    _check_bases(parts)
    for other in others:
        _check_pair(first, other)
    unknown = [part.name for part in parts if not part.base]
    return f"not checked, because no run says it: the base of {', '.join(unknown)}" if unknown else ""


def _check_kind(first: Part, other: Part) -> None:
    if is_adapter(first.folder) != is_adapter(other.folder):
        raise ConfigError(
            f"{first.name!r} and {other.name!r} are an adapter and a whole model.",
            fix="Merge the adapter first: onecurve checkpoint convert ADAPTER FOLDER --merge.",
        )


def _check_bases(parts: Sequence[Part]) -> None:
    """Raise `ConfigError` where two bases are known that differ, whatever is unknown between them."""
    known = [part for part in parts if part.base]
    for part in known:
        if part.base.startswith(_DRAWN):
            raise ConfigError(f"{part.name!r} was trained from {_DRAWN}: no other model has its base.")
        if part.base != (first := known[0]).base:
            raise ConfigError(
                f"{first.name!r} and {part.name!r} come from different bases: {first.base} and {part.base}."
            )


def _check_pair(first: Part, other: Part) -> None:
    both = f"{first.name!r} and {other.name!r}"
    file = CONFIG if is_adapter(first.folder) else "config.json"
    mine, theirs = (_settings(part.folder / file) for part in (first, other))
    if differing := sorted(k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k)):
        raise ConfigError(f"{both} differ in {file}: {', '.join(differing)}.")
    tasks = [TaskFile.read(part.folder) for part in (first, other)]
    told = [(task.name, task.settings, task.survey.labels) for task in tasks if task]
    if told[1:] and told[0] != told[1]:
        raise ConfigError(f"{both} were trained for other tasks, settings or labels (task.json).")
    for name in ("tokenizer.json", "vocab.txt", "preprocessor_config.json", "processor_config.json"):
        if _text(first.folder / name) != _text(other.folder / name):
            raise ConfigError(f"{both} have different {name}.")


def _settings(file: Path) -> dict[str, Any]:
    told = json.loads(file.read_text(encoding="utf-8"))
    if file.name == CONFIG:
        kept = {"base_model_name_or_path", "revision", "inference_mode"}
        return {k: sorted(v) if isinstance(v, list) else v for k, v in told.items() if k not in kept}
    return {key: value for key, value in told.items() if key not in _OF_THE_SAVING}


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def write_mean(parts: Sequence[Part], weights: Sequence[float], folder: Path) -> str:
    """Write the mean into a new folder, beside copies of what else the first one's folder holds.

    Args:
        parts: What `check_parts` passed.
        weights: Of each; they add up to 1.
        folder: Not there yet.

    Returns:
        How it was averaged, in a few words.

    Raises:
        ConfigError: Tensors of other names or shapes, or an adapter's method of which no mean is exact.
    """
    shutil.copytree(parts[0].folder, folder, symlinks=True, ignore=_left_behind)
    if not is_adapter(parts[0].folder):
        mean = mean_of([read_weights(part.folder) for part in parts], weights, parts)
        save_file(mean, folder / "model.safetensors", metadata={"format": "pt"})
        return "mean of the weights"
    settings = json.loads((parts[0].folder / CONFIG).read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = Continued.read(str(parts[0].folder)).base
    tensors = [load_file(part.folder / ADAPTER) for part in parts]
    mean, how = _mean_of_adapters(tensors, weights, parts, settings)
    save_file(mean, folder / ADAPTER, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")
    return how


def _left_behind(folder: str, names: list[str]) -> set[str]:
    # An adapter's links to its base's weights stay: in base/, and beside the adapter
    return {n for n in shutil.ignore_patterns(*_NOT_COPIED)(folder, names) if not Path(folder, n).is_symlink()}


def mean_of(
    models: Sequence[dict[str, Tensor]],
    weights: Sequence[float],
    parts: Sequence[Part],
) -> dict[str, Tensor]:
    """Return the weighted mean of each tensor, summed in float64 and kept in its own dtype; counts as in the first.

    Raises:
        ConfigError: Other names or shapes.
    """
    for part, model in zip(parts[1:], models[1:], strict=True):
        differing = [
            name
            for name in sorted(models[0].keys() | model.keys())
            if getattr(models[0].get(name), "shape", None) != getattr(model.get(name), "shape", None)
        ]
        if differing:
            more = f" and {len(differing) - _NAMED} more" if len(differing) > _NAMED else ""
            raise ConfigError(
                f"{parts[0].name!r} and {part.name!r} have tensors of other names or shapes: "
                f"{', '.join(differing[:_NAMED])}{more}."
            )
    mean = {}
    for name, value in models[0].items():
        if value.is_floating_point():
            total = sum(w * model[name].double() for w, model in zip(weights, models, strict=True))
            mean[name] = torch.as_tensor(total).to(value.dtype)
        else:
            mean[name] = value
    return mean


def _mean_of_adapters(
    tensors: Sequence[dict[str, Tensor]], weights: Sequence[float], parts: Sequence[Part], settings: dict[str, Any]
) -> tuple[dict[str, Tensor], str]:
    """Average adapters exactly: the mean of the factors A and B is not the mean of their products B A."""
    method = str(settings["peft_type"]).lower()
    if method in _LINEAR:
        return mean_of(tensors, weights, parts), "mean of the factors, which is the mean of the models"
    bent = [key for key in _NOT_LINEAR if settings.get(key)]
    if method != "lora" or bent:
        raise _inexact(f"{method} adapters{f' with {bent[0]}' if bent else ''}", parts)
    mean = mean_of(tensors, weights, parts)
    first = [name for name in mean if ".lora_A." in name or ".lora_embedding_A" in name]
    if all(torch.equal(one[name], tensors[0][name]) for one in tensors for name in first):
        return mean, "all adapters share A, so the mean of B is exact"
    if uneven := [key for key in _NOT_STACKED if settings.get(key)]:
        raise _inexact(f"lora adapters with {uneven[0]}", parts)
    if PeftSection.model_validate({"method": method, _INIT: settings.get(_INIT)}).moves_base:
        raise _inexact(f"lora adapters with {_INIT} {settings[_INIT]}, each with an A of its own,", parts)
    for name in first:
        down, up = name, name.replace("lora_A", "lora_B").replace("lora_embedding_A", "lora_embedding_B")
        mean[down] = torch.cat([one[down] for one in tensors], 0).contiguous()
        mean[up] = torch.cat([w * one[up] for w, one in zip(weights, tensors, strict=True)], 1).contiguous()
    count = len(tensors)
    settings["r"] = (rank := settings["r"]) * count
    # What B A is multiplied by stays the same: alpha / r, or alpha / sqrt(r)
    settings["lora_alpha"] *= sqrt(count) if settings.get("use_rslora") else count
    return mean, f"exact: the adapters side by side, so the rank grows from {rank} to {rank * count}"


def _inexact(what: str, parts: Sequence[Part]) -> ConfigError:
    return ConfigError(
        f"the mean of {what} is not the mean of their models.",
        where=parts[0].name,
        fix="Merge each into its base (onecurve checkpoint convert ADAPTER FOLDER --merge) and average those.",
    )


def weights_of(asked: str | None, parts: Sequence[Part]) -> list[float]:
    """Return the share of each model: equal ones, those asked for, or by the runs' numbers of training examples.

    Raises:
        ConfigError: Other than one number above 0 for each, or a run that does not say its number.
    """
    if len(parts) < 2:
        raise ConfigError("a mean is of two models or more.", fix="Name several runs.")
    if asked == "examples":
        numbers = [_num_examples(part) for part in parts]
    else:
        try:
            numbers = [float(word) for word in asked.split(",")] if asked else [1.0] * len(parts)
        except ValueError:
            raise ConfigError(f"must be `examples` or numbers such as 1,2; got {asked!r}.", where="--weights") from None
    if len(numbers) != len(parts) or not all(0 < number < inf for number in numbers):
        raise ConfigError(f"must be {len(parts)} numbers above 0; got {asked!r}.", where="--weights")
    return [number / sum(numbers) for number in numbers]


def _num_examples(part: Part) -> float:
    root = part.folder.parent / "checkpoints"
    for step in steps(root)[::-1]:
        return float(read_state(root / folder_name(step))["num_examples"])
    raise ConfigError(
        f"{part.name!r} has no checkpoint, which would say how many examples it was trained on.",
        where="--weights",
        fix="Give numbers.",
    )


def averaged_card(parts: Sequence[Part], weights: Sequence[float], how: str) -> Callable[[str], str]:
    """Return what makes the README.md of what is said there about loading the folder."""
    lines = [f"- {weight:.4g} of `{part.name}`" for weight, part in zip(weights, parts, strict=True)]
    head = f"# Mean of {len(parts)} models\n\nAveraged by onecurve ({how}):\n\n"
    return lambda use: head + "\n".join(lines) + f"\n\n{use}"
