"""Adds links to the base model to an adapter's folder, so that plain transformers and PEFT can load it.

transformers takes a folder with config.json and adapter_config.json for a whole model with an adapter, and looks there
for the base's weights; PEFT's AutoPeft classes build whatever `base_model_name_or_path` names, with its own labels.
So the folder and its `base/` both hold the config as it was trained and links to the base's weights, as a snapshot in
the hub's cache does.
"""

import json
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import custom_object_save

from onecurve.adapters.folder import BASE, WEIGHTS
from onecurve.model.construction import whole_parameters

_MAGNITUDE = ".lora_magnitude_vector"


@dataclass(frozen=True)
class Base:
    """The base of an adapter, as its folder refers to it."""

    name: str
    """A hub name, or this machine's path of a folder."""
    revision: str | None
    """The commit of the hub's repository."""
    local: bool
    """Whether it is a folder."""
    linked: bool
    """Whether the adapter's folder links to the base's weights."""
    differs: bool
    """Whether the base says otherwise of itself than the adapter needs: other labels, other stop tokens."""
    copied: str = ""
    """How the base's weights in `base/` differ from its own files, if that is why they are copied instead of linked."""

    @property
    def stand_in(self) -> bool:
        """Whether adapter_config.json names the folder's own `base/`: a hub name stays, for it is good anywhere."""
        return bool(self.copied) or (self.local and self.linked and self.differs)


def write_base(folder: Path, final: Path, model: Any) -> Base:
    """Write what an adapter's folder needs of its base, beside the adapter that PEFT has saved there.

    Args:
        folder: Where the adapter lies now.
        final: Where it will lie.
        model: The PEFT model.
    """
    peft_config = model.peft_config["default"]
    name = str(peft_config.base_model_name_or_path or "")
    local, revision = Path(name).is_dir(), peft_config.revision
    _name_magnitudes_twice(folder / "adapter_model.safetensors")
    _describe(folder / BASE, model)
    files = _weight_files(name, revision)
    if files and not local:
        revision = files[0].parent.name  # the very commit: a snapshot is named after it
    if copied := _write_fitting(folder / BASE, name, revision, model):
        files = [Path(BASE) / file.name for file in sorted((folder / BASE).iterdir()) if ".safetensors" in file.name]
    linked = bool(files) and (bool(copied) or _link(folder / BASE, files))
    if linked:
        _describe(folder, model)
        _link(folder, files)
    base = Base(name, revision, local, linked, local and _differs(name, model), copied)
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = str(final.absolute() / BASE) if base.stand_in else name
    settings["revision"] = None if base.copied else base.revision
    path.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")
    return base


def _name_magnitudes_twice(file: Path) -> None:
    """Give DoRA's magnitudes the name that transformers looks for beside the one that PEFT writes.

    transformers 5.23 finds no `lora_magnitude_vector`, says so in a table of its log, and computes without: measured.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(file, framework="pt") as stored:
        if not any(name.endswith(_MAGNITUDE) for name in stored.keys()):
            return
    tensors = load_file(file)
    tensors |= {f"{name}.weight": value.clone() for name, value in tensors.items() if name.endswith(_MAGNITUDE)}
    save_file(tensors, file, metadata={"format": "pt"})


def _describe(folder: Path, model: Any) -> None:
    """Write the config as it was trained, with what stops generation, and code of the model's own."""
    folder.mkdir(parents=True, exist_ok=True)
    base = model.get_base_model()
    if base.is_remote_code():  # as its own save_pretrained does
        custom_object_save(base, folder, config=model.config)
    model.config.save_pretrained(folder)
    if model.get_base_model().can_generate():
        model.generation_config.save_pretrained(folder)


def has_token_embeddings(model: Any) -> bool:
    """Whether a transformers model looks tokens up; one that reads sounds may have a vocabulary in its head alone."""
    try:
        return model.get_input_embeddings() is not None
    except NotImplementedError:
        return False


def _write_fitting(folder: Path, name: str, revision: str | None, model: Any) -> str:
    """Write the base's weights in the shapes that the adapter needs, where its own files have others.

    No reader puts an adapter on files of other shapes. A vocabulary that has grown gets a row for each new token; a
    head for other labels is left out. What is missing then is of no account, since the adapter brings its own.

    Returns:
        How what was written differs from the base's own files; empty where they fit and nothing is written.
    """
    own, base = _own_config(name, revision, model), model.get_base_model()
    sizes = [getattr(config.get_text_config(), "vocab_size", None) for config in (own, model.config)]
    if sizes[0] == sizes[1] and own.num_labels == model.config.num_labels:
        return ""
    config, grown = deepcopy(model.config), sizes[0] != sizes[1] and has_token_embeddings(base)
    if grown:
        config.get_text_config().vocab_size = sizes[0]
    load = partial(
        type(base).from_pretrained,
        name,
        config=config,
        revision=revision,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    with whole_parameters():
        _, found = load(device_map="meta")  # reads the files' headers alone
        other_head = {parameter for parameter, _, _ in found["mismatched_keys"]}
        if not grown and not other_head:
            return ""
        fitting, _ = load(dtype=base.dtype)
        if grown:
            fitting.resize_token_embeddings(sizes[1], mean_resizing=False)
    kept = {parameter: value for parameter, value in fitting.state_dict().items() if parameter not in other_head}
    fitting.save_pretrained(folder, state_dict=kept)
    told = {"with a row for each new token": grown, "without its head, which is for other labels": bool(other_head)}
    return " and ".join(words for words, so in told.items() if so)


def _weight_files(name: str, revision: str | None) -> list[Path]:
    """Find the files that transformers loaded the base from; none where it has other ones, or none at all."""
    for kind in WEIGHTS:
        found = _find(name, kind, revision)
        if found is None:
            continue
        if not kind.endswith(".index.json"):
            return [found]
        shards = sorted(set(json.loads(found.read_text(encoding="utf-8"))["weight_map"].values()))
        files = [_find(name, shard, revision) for shard in shards if "/" not in shard]
        return [found, *(file for file in files if file)] if len(shards) == len([f for f in files if f]) else []
    return []


def _find(name: str, file: str, revision: str | None) -> Path | None:
    """Find a file of a local folder, or of a hub repository's local copy."""
    if Path(name).is_dir():
        path = Path(name).absolute() / file
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, file, revision=revision)
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None


def _link(folder: Path, files: list[Path]) -> bool:
    """Link to files; False, with no link left, on a disk that has no links."""
    links = [(folder / file.name, file) for file in files]
    try:
        for link, file in links:
            link.symlink_to(file)
    except OSError:
        for link, _ in links:
            link.unlink(missing_ok=True)
        return False
    return True


def _own_config(name: str, revision: str | None, model: Any) -> Any:
    """Load the base's config by the class that is loaded already: code of its own is run once, where it is trusted."""
    return type(model.config).from_pretrained(name, revision=revision or "main")


def _differs(name: str, model: Any) -> bool:
    from transformers import GenerationConfig

    own = _own_config(name, None, model)
    if any(getattr(own, key, None) != getattr(model.config, key, None) for key in ("id2label", "problem_type")):
        return True
    if not model.get_base_model().can_generate():
        return False
    try:
        generation = GenerationConfig.from_pretrained(name)
    except OSError:
        generation = GenerationConfig.from_model_config(own)
    return bool(generation.eos_token_id != model.generation_config.eos_token_id)
