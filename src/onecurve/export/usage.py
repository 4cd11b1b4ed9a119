"""The model card's section on loading: code that runs as it is."""

import json
from pathlib import Path
from typing import Any

import torch

from onecurve.adapters.folder import BASE
from onecurve.export.adapter_folder import Base

_PIPELINES = {
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForImageClassification": "image-classification",
    "AutoModelForSemanticSegmentation": "image-segmentation",
    "AutoModelForObjectDetection": "object-detection",
    "AutoModelForAudioClassification": "audio-classification",
    "AutoModelForCTC": "automatic-speech-recognition",
}
"""transformers' class -> its pipeline."""
_IMAGE, _SOUND = '"image.png"', '"clip.wav"'
_ASKED = {
    "AutoModelForMaskedLM": 'f"some {pipe.tokenizer.mask_token}"',
    "AutoModelForImageClassification": _IMAGE,
    "AutoModelForSemanticSegmentation": _IMAGE,
    "AutoModelForObjectDetection": _IMAGE,
    "AutoModelForAudioClassification": _SOUND,
    "AutoModelForCTC": _SOUND,
}
"""What a pipeline is asked that takes no plain text, as code."""
_GENERATION = "base.generation_config = GenerationConfig.from_pretrained({})"


def usage(folder: Path, model: Any, base: Base | None) -> str:
    """Return the card's section on loading.

    Args:
        folder: Where the folder lies, absolute.
        model: The model, with its adapter where it has one.
        base: The adapter's base; None for a whole model.
    """
    kind = _auto_class(model.get_base_model() if base else model)
    lines = ["## Use", ""]
    if base is None:
        lines += _with_transformers(folder, kind, _options(model))
    else:
        plain = base.linked and _transformers_loads(model)
        lines += _with_transformers(folder, kind, _options(model)) if plain else []
        lines += _with_peft(folder, kind, model, base, plain)
    return "\n".join(lines)


def _auto_class(model: Any) -> str:
    import transformers

    own = getattr(model.config, "auto_map", None) or {}
    for name in _PIPELINES:
        known = getattr(transformers, name)._model_mapping.get(type(model.config), None)
        if name in own or type(model) in (known if isinstance(known, tuple) else (known,)):
            return name
    return next((name for name in own if name.startswith("AutoModel")), "AutoModel")


def _transformers_loads(model: Any) -> bool:
    """Whether transformers can put the adapter on a base without PEFT's own model class around it."""
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    from transformers import PreTrainedModel

    config = model.peft_config["default"]
    if config.is_prompt_learning or config.is_adaption_prompt or config.peft_type.value == "BOTTLENECK":
        return False
    if type(model.get_base_model()).load_adapter is not PreTrainedModel.load_adapter:
        return False  # wav2vec2 and its kin load adapters of another kind by that name
    return not PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type].uses_shared_state


def _rounds(model: Any) -> bool:
    """Whether a regression's numbers would be rounded, because its weights are stored in half precision."""
    return model.dtype in (torch.bfloat16, torch.float16) and model.config.problem_type == "regression"


def _trust(model: Any) -> str:
    return ", trust_remote_code=True" if getattr(model.config, "auto_map", None) else ""


def _options(model: Any) -> str:
    """Return further arguments of a call that loads the model."""
    return (', dtype="float32"' if _rounds(model) else "") + _trust(model)


def _with_transformers(folder: Path, kind: str, options: str) -> list[str]:
    if kind in _PIPELINES:
        lines = [
            "from transformers import pipeline",
            "",
            f"pipe = pipeline({_text(_PIPELINES[kind])}, {_text(folder)}{options})",
            f"print(pipe({_ASKED.get(kind, _text('some text'))}))",
        ]
    else:
        lines = [f"from transformers import {kind}", "", f"model = {kind}.from_pretrained({_text(folder)}{options})"]
    return _code(lines)


def _with_peft(folder: Path, kind: str, model: Any, base: Base, plain: bool) -> list[str]:
    method = str(model.peft_config["default"].peft_type.value).lower()
    if method == "bottleneck":
        first = "The method is onecurve's own: it loads where onecurve is installed and imported, and cannot be merged."
        imports = ["import onecurve.adapters.bottleneck  # PEFT learns of the method here"]
    else:
        first = _rounding(model) + "As a PEFT model:" if plain else f"transformers alone loads no {method}; PEFT does:"
        imports = []
    imports.append("from peft import PeftModel")
    generates = model.get_base_model().can_generate()
    adapter = f"model = PeftModel.from_pretrained(base, {_text(folder)})"
    here = [
        *imports,
        f"from transformers import {kind}",
        "",
        f"base = {kind}.from_pretrained({_text(folder / BASE)}{_options(model)})",
        adapter,
    ]
    there = [
        *imports,
        f"from transformers import AutoConfig, {kind}{', GenerationConfig' * generates}",
        "",
        f"config = AutoConfig.from_pretrained({_text(folder / BASE)}{_trust(model)})",
        f"base = {kind}.from_pretrained({_text(base.name)}{_revision(base)}, config=config{_options(model)})",
        *([_GENERATION.format(_text(folder / BASE))] * generates),
        adapter,
    ]
    if not base.linked:
        return [first, "", *_code(there), f"Its base is `{base.name}`.", ""]
    if base.copied:
        return [
            *[first, "", *_code(here)],
            f"`{BASE}/` holds the weights of `{base.name}` {base.copied}; the weight files beside it",
            f"are links to them. adapter_config.json names `{folder / BASE}`: after moving this folder, change",
            "`base_model_name_or_path` there.",
            "",
        ]
    return [first, "", *_code(here), *_about(folder, kind, base), *_code(there)]


def _rounding(model: Any) -> str:
    kept = str(model.get_base_model().dtype).removeprefix("torch.")
    if kept == "float32" or _rounds(model):
        return ""
    return f"transformers rounds the adapter to {kept}, as it holds the base; PEFT keeps it as it was trained. "


def _about(folder: Path, kind: str, base: Base) -> list[str]:
    """Describe the folder's references to the base model."""
    where = f"the folder `{base.name}` of the machine that wrote it" if base.local else f"`{base.name}` on the hub"
    lines = [
        f"This folder holds the adapter. Its base is {where}: the other weight files here and in `{BASE}/` are links",
        "to that base's files, which a copy or an upload that follows links takes along.",
    ]
    if kind in _PIPELINES:
        named = f"AutoPeft{kind.removeprefix('Auto')}"
        auto = f"`{'AutoPeftModel' if kind == 'AutoModelForMaskedLM' else named}.from_pretrained`"
        if base.stand_in:
            lines += [
                f"adapter_config.json names `{folder / BASE}` as the base, so that PEFT's {auto} builds it as it was",
                "trained: after moving this folder, change `base_model_name_or_path` there.",
            ]
        elif kind not in ("AutoModelForCausalLM", "AutoModelForMaskedLM"):
            lines += [f"PEFT's {auto} builds the base with its own labels: give it `id2label`, as config.json has it."]
    return [*lines, "", "Where those links lead nowhere, name the base:", ""]


def _revision(base: Base) -> str:
    return f", revision={_text(base.revision)}" if base.revision else ""


def _code(lines: list[str]) -> list[str]:
    return ["```python", *lines, "```", ""]


def _text(value: object) -> str:
    return json.dumps(str(value), ensure_ascii=False)
