"""The layers that a method adapts where the recipe names none."""

from collections.abc import Iterator
from typing import Any

from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from onecurve.errors import ConfigError

_NOT_LINEAR = {"BEFT", "BOTTLENECK", "LN_TUNING", "TRAINABLE_TOKENS"}
"""Methods whose targets are not linear layers at large: for them there is no such default."""
_HEADS = ("classifier", "heads", "score", "qa_outputs")
"""Heads that are trained whole or new: by the names that PEFT knows, and the heads of a model with several."""


def fill_targets(model: PreTrainedModel, config: Any, method: str) -> None:
    """Target the layers that PEFT knows for this type of model, or else all suitable linear ones.

    Args:
        model: The base.
        config: The method's, changed in place; left alone where it names targets.
        method: PEFT's name of the method, in capitals.

    Raises:
        ConfigError: The model has no such layer.
    """
    if config.is_prompt_learning or config.is_adaption_prompt or method in _NOT_LINEAR:
        return
    if config.target_modules == "all-linear" and isinstance(getattr(model, "heads", None), nn.ModuleDict):
        config.target_modules = _by_shortest_names(set(suitable_layers(model)), [n for n, _ in model.named_modules()])
    if config.target_modules is not None or getattr(config, "target_parameters", None):
        return
    tuner: Any = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    known = getattr(tuner, "target_module_mapping", TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING)
    suitable, all_names = set(suitable_layers(model)), [name for name, _ in model.named_modules()]
    names = known.get(model.config.model_type) or ()
    if isinstance(names, str):  # a pattern, which PEFT fills in by itself
        return
    # PEFT has names of layers that a later transformers calls otherwise, and some that it then refuses itself
    matched = {name for name in all_names if name.rpartition(".")[2] in names}
    if matched and (matched <= suitable or not matched & _linear(model)):
        config.target_modules = set(names)
        return
    if not suitable:
        raise ConfigError(
            f"{type(model).__name__} has no linear layers that {method.lower()} could adapt.",
            where="peft.method",
            fix="Name layers with peft.target_modules, or use another method.",
        )
    config.target_modules = _by_shortest_names(suitable, all_names)
    if method == "IA3" and config.feedforward_modules is None:
        config.feedforward_modules = set()  # every layer is scaled at its output


def suitable_layers(model: PreTrainedModel) -> Iterator[str]:
    """Yield the names of the linear layers that an adapter can stand in for, the output layer and heads left out.

    Not suitable is a router that returns more than its product, though its class is derived from a linear layer's, and
    whatever of a state space mixer its fused kernels read the weights of without calling it: on a GPU an adapter there
    would have no effect (`mamba_inner_fn`, `mamba_split_conv1d_scan_combined`; PEFT refuses `out_proj` for it).
    """
    output, modules = model.get_output_embeddings(), dict(model.named_modules())
    for name in _linear(model):
        module, (owner, _, own) = modules[name], name.rpartition(".")
        if module is output or (output is None and name.partition(".")[0] in _HEADS):
            continue
        if type(module).__module__.startswith("transformers.models.") and "Linear" not in type(module).__name__:
            continue
        if own != "in_proj" and hasattr(modules[owner], "A_log") and hasattr(modules[owner], "D"):
            continue
        yield name


def _linear(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}


def _by_shortest_names(suitable: set[str], all_names: list[str]) -> set[str]:
    """Name layers by their last part where all modules of that name are meant, else in full."""
    last = {name.rpartition(".")[2] for name in suitable}
    unclear = {own for name in all_names if (own := name.rpartition(".")[2]) in last and name not in suitable}
    return {name if (own := name.rpartition(".")[2]) in unclear else own for name in suitable}
