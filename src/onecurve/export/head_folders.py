"""A folder for each head of a model with several, which plain transformers or PEFT loads as a model of its own."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from onecurve.adapters.read_back import differences
from onecurve.config import TaskSection
from onecurve.export.adapter_folder import has_token_embeddings, write_base
from onecurve.export.usage import usage
from onecurve.model.task_file import TaskFile
from onecurve.tasks import load_task
from onecurve.tasks._heads_model import ManyHeads, head_class, head_config, module_name

_KEPT = ".modules_to_save.default"
_BY_PEFT = ("classifier", "score")
"""The heads that PEFT wraps and saves by itself, for the task types that classify."""
_LARGEST = "5GB"


def base_of(model: Any) -> Any:
    """Return a model without its adapter."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def has_heads(model: Any) -> bool:
    """Whether a model, with or without an adapter, has several heads."""
    return isinstance(base_of(model), ManyHeads)


def write_with_heads(folder: Path, model: Any, values: Mapping[str, Tensor]) -> None:
    """Write a whole model and its heads, each a model of its own; all share the files of the backbone.

    A file is shared by a hard link; on a disk that has none, and only there, it is copied.

    Args:
        folder: Where; a head lies in the folder of its name there.
        model: With several heads.
        values: Its weights by name, on the CPU.
    """
    names = {name: _weights_of(model, name) for name in model.config.task_heads}
    shared = {key for key in values if all(key in of_head.values() for of_head in names.values())}
    split = split_torch_state_dict_into_shards({k: values[k] for k in values if k in shared}, max_shard_size=_LARGEST)
    backbone = [{key: values[key] for key in keys} for keys in split.filename_to_tensors.values()]
    rest = {key: value for key, value in values.items() if key not in shared}
    files = _write_shards(folder, [*backbone, rest], {})
    for name, of_head in names.items():
        place = folder / name
        place.mkdir()
        own = {key: values[there] for key, there in of_head.items() if there not in shared}
        _write_shards(place, [*backbone, own], dict(enumerate(files[: len(backbone)])))
        head_config(model.config, name).save_pretrained(place)
    model.config.save_pretrained(folder)


def _weights_of(model: Any, name: str) -> dict[str, str]:
    """Return the weights of a head's own model: their names there -> in the model with all heads."""
    prefix = f"{model.base_model_prefix}."
    here = model.state_dict()
    found = {
        key: key if key.startswith(prefix) else f"heads.{module_name(name)}.{key}"
        for key in _alone(model, name).state_dict()
    }
    return {key: there for key, there in found.items() if there in here}


def _alone(model: Any, name: str) -> Any:
    """Return a head's own model, without weights."""
    with torch.device("meta"):
        return head_class(model.config, model.config.task_heads[name]["kind"])(head_config(model.config, name))


def _write_shards(folder: Path, shards: list[dict[str, Tensor]], links: Mapping[int, Path]) -> list[Path]:
    """Write the files of a model and their index; those that lie elsewhere already are linked to."""
    files: list[Path] = []
    weight_map: dict[str, str] = {}
    seen: set[int] = set()
    for number, shard in enumerate(shards):
        own = {id(value): (key, value) for key, value in reversed(shard.items()) if id(value) not in seen}
        kept = dict(own.values())  # what is tied once
        seen |= own.keys()
        path = folder / f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        if number in links:
            try:
                os.link(links[number], path)
            except OSError:
                shutil.copy2(links[number], path)
        else:
            save_file(kept, path, metadata={"format": "pt"})
        files.append(path)
        weight_map |= dict.fromkeys(kept, path.name)
    size = sum(value.nbytes for shard in shards for value in shard.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return files


def finish_heads(
    folder: Path,
    final: Path,
    model: Any,
    values: Mapping[str, Tensor],
    processor: Any,
    card: Callable[[str], str],
    task: TaskFile | None,
) -> str:
    """Write what each head's folder still lacks, its adapter where it is one, and read the weights back.

    Args:
        folder: Of the model with all heads, as it lies now.
        final: Where it will lie.
        model: With several heads, and an adapter or not.
        values: What was trained.
        processor: Reads the text.
        card: Makes the README.md of what is said there about loading.
        task: What the model with all heads was trained for.

    Returns:
        How what was read back differs from what was trained; empty where it does not.
    """
    files = _task_files(task) if task else {}
    adapter = hasattr(model, "peft_config")
    for name in base_of(model).config.task_heads:
        place, base = folder / name, None
        processor.save_pretrained(place)
        if adapter:
            alone, own = _adapter_of(model, name, values)
            table = "auto" if has_token_embeddings(alone.get_base_model()) else False
            alone.save_pretrained(place, state_dict=dict(own), save_embedding_layers=table)
            base = write_base(place, final / name, alone)
            different = differences(place, alone, own)
        else:
            alone = _alone(model, name)
            different = _different(place, model, name, values)
        if different:
            return f"{name}: {different}"
        (place / "README.md").write_text(card(usage((final / name).absolute(), alone, base)), encoding="utf-8")
        if name in files:
            files[name].write(place)
    return ""


def _different(place: Path, model: Any, name: str, values: Mapping[str, Tensor]) -> str:
    kind = getattr(transformers, model.config.task_heads[name]["kind"])
    alone, found = kind.from_pretrained(place, dtype="auto", output_loading_info=True)
    if wrong := [*found["missing_keys"], *found["unexpected_keys"], *found["mismatched_keys"]]:
        return f"not as its config says: {', '.join(map(str, wrong))}."
    there = alone.state_dict()
    different = [key for key, whole in _weights_of(model, name).items() if not torch.equal(there[key], values[whole])]
    return f"other values: {', '.join(different)}." if different else ""


def _adapter_of(model: Any, name: str, values: Mapping[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    """Return a head's own model with the adapter, without weights, and the adapter's values by its names."""
    from peft import get_peft_model

    base, config = model.get_base_model(), deepcopy(model.peft_config["default"])
    alone = _alone(base, name).to(base.dtype)
    alone.name_or_path = base.name_or_path
    config.task_type, config.auto_mapping = base.config.task_heads[name]["peft_task_type"], None
    for field in ("modules_to_save", "target_modules", "exclude_modules"):
        if isinstance(given := getattr(config, field, None), list | set | tuple):
            setattr(config, field, _named(given, name) or None)
    if config.task_type in ("SEQ_CLS", "TOKEN_CLS") and config.modules_to_save:
        config.modules_to_save = [
            one for one in config.modules_to_save if one.partition(".")[0] not in _BY_PEFT
        ] or None
    with torch.device("meta"):
        adapted = get_peft_model(alone, config, revision=config.revision)
    known = {key.replace(_KEPT, ""): key for key in (*dict(adapted.named_parameters()), *dict(adapted.named_buffers()))}
    mine = f".heads.{module_name(name)}."
    own = {}
    for key, value in values.items():
        plain = key.replace(_KEPT, "").replace(mine, ".")
        if plain in known:
            own[known[plain]] = value
    lacking = [key for key, p in adapted.named_parameters() if p.requires_grad and key not in own]
    if lacking:
        raise ValueError(f"the adapter of {name} alone lacks {', '.join(lacking)}")
    return adapted, own


def _named(given: Any, name: str) -> list[str]:
    """Return names of modules as a head's own model has them, without those of other heads."""
    mine = f"heads.{module_name(name)}."
    return sorted(one.removeprefix(mine) for one in given if one.startswith(mine) or not one.startswith("heads."))


def _task_files(task: TaskFile) -> dict[str, TaskFile]:
    heads = load_task(TaskSection(name=task.name, **task.settings)).heads  # type: ignore[attr-defined]
    found = {}
    for name, head in heads.items():
        inputs = [column for column in head.columns if column not in head.task.targets]
        called = {column: task.columns.get(head.columns[column], head.columns[column]) for column in inputs}
        columns = {column: there for column, there in called.items() if column != there}
        kind = task.settings["heads"][name]["name"]
        found[name] = TaskFile.of(kind, head.task, task.survey.heads[name], columns, task.max_length)
    return found


def usage_of_heads(folder: Path, model: Any) -> str:
    """Return the card's section on loading a model with several heads.

    Args:
        folder: Where it lies, absolute.
        model: The model, with its adapter where it has one.
    """
    lines = ["## Heads", "", "| head | kind | labels |", "|---|---|---|"]
    for name, told in base_of(model).config.task_heads.items():
        labels = ", ".join((told["config"].get("id2label") or {}).values()) or "a number"
        lines.append(f"| [{name}]({name}/README.md) | `{told['kind']}` | {labels} |")
    lines += [
        "",
        "## Use",
        "",
        "Each head's folder is a model of its own that transformers, or PEFT, loads as its README.md shows. All heads",
        "in one pass:",
        "",
        "```",
        f"onecurve predict {json.dumps(str(folder), ensure_ascii=False)} --json 'some text'",
        "```",
        "",
    ]
    return "\n".join(lines)
