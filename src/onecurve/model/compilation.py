"""A model's repeated layers as torch compiles them: a few graphs for batches of every shape, or the run ends."""

import os
import shutil
from collections.abc import Callable
from functools import partial
from inspect import signature
from pathlib import Path
from sysconfig import get_path
from typing import Any

import torch

from onecurve.config import Recipe
from onecurve.errors import ConfigError, LaunchError, TrainingError

_GRAPHS = 32
"""That one piece of a layer may be compiled to. Those that are meant: for training and for scoring, with and without a
mask, for one example and for several, for each kind of layer that a model alternates."""


def check_compilation(recipe: Recipe) -> None:
    """Check that what a recipe asks for can be compiled, and that this machine has what compiles it.

    Raises:
        ConfigError: The recipe asks for something that does not work inside a compiled layer.
        LaunchError: There is no C++ compiler, which a CPU's code needs and, for what starts its kernels, a GPU's too.
    """
    train = recipe.train
    obstacle = ""
    if recipe.model.quantization:
        obstacle = f"layers of {recipe.model.quantization} weights (model.quantization) are not compiled"
    elif train.activations in ("selective", "offload"):
        obstacle = f"{train.activations} (train.activations) takes each operator by itself, and a graph has none"
    elif train.activations == "recompute" and train.packing != "off":
        obstacle = "layers that train.activations recomputes are one graph, and train.packing needs two"
    if obstacle:
        raise ConfigError(f"{obstacle}.", where="train.compile", fix="Set it to false, or change the other.")
    compiler = os.environ.get("CXX", "g++")
    if not shutil.which(compiler):
        raise LaunchError(
            f"torch writes C++ for this machine, and there is no compiler for it ({compiler}).",
            where="train.compile",
            fix="Install g++ (Debian and Ubuntu: apt-get install g++), or set it to false.",
        )
    if not Path(get_path("include"), "Python.h").is_file():
        raise LaunchError(
            f"what torch writes needs Python's headers, and there is no Python.h in {get_path('include')}.",
            where="train.compile",
            fix="Install them (Debian and Ubuntu: apt-get install python3-dev), or set it to false.",
        )


def compile_layers(model: Any) -> None:
    """Have torch compile a model's repeated layers, in place: parameters keep their names.

    The shapes of a batch stay symbols, so that another length is no other graph, and dropout draws what it draws
    without compilation. What is left between the two is the rounding of sums in another order.

    Args:
        model: A transformers or PEFT model, as it is trained.

    Raises:
        ConfigError: It has no layers that transformers tells from the rest.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer  # which takes a second

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ConfigError(
            f"transformers does not say which layers of this {model.config.model_type} repeat.",
            where="train.compile",
            fix="Set it to false.",
        )
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    base.is_compiled, backbone = True, base.base_model
    if "use_cache" in signature(backbone.forward).parameters:
        backbone.register_forward_pre_hook(_without_cache, with_kwargs=True)
    torch._dynamo.config.recompile_limit = _GRAPHS
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # torch would go on uncompiled, in a log's silence
    for layer in layers:
        call = torch.compile(layer._call_impl, dynamic=True, options={"fallback_random": True})
        layer._compiled_call_impl = partial(_within_bounds, call)  # where `Module.compile` keeps it


def _without_cache(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    # Of keys and values, which transformers makes unless told otherwise: each layer would be another graph. `generate`
    # hands one over, and runs uncompiled
    return args, kwargs if kwargs.get("past_key_values") is not None else {**kwargs, "use_cache": False}


def _within_bounds(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return call(*args, **kwargs)
    except torch._dynamo.exc.FailOnRecompileLimitHit as error:
        raise TrainingError(
            f"train.compile: a layer needs more than {_GRAPHS} graphs, so more than a batch's shape changes "
            "between passes; TORCH_LOGS=recompiles shows what. Set it to false and launch again: the run "
            "resumes from its last checkpoint, with the same curve."
        ) from error
