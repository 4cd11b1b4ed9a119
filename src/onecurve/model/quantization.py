"""A frozen base model in 4 or 8 bits, with an adapter trained on top (QLoRA)."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from onecurve.config import ModelSection
from onecurve.errors import ConfigError, LaunchError

if TYPE_CHECKING:
    import torch


def require_bitsandbytes(where: str, value: str) -> None:
    """Raise `LaunchError` where the package that `value` of the setting `where` needs is not installed."""
    if find_spec("bitsandbytes") is None:
        raise LaunchError(
            f"{value} needs the package bitsandbytes, which is not installed.",
            where=where,
            fix='Install it with `pip install "onecurve[quant]"`.',
        )


def quantized_loading(
    section: ModelSection, auto_model: Any, config: Any, computed_in: "torch.dtype"
) -> dict[str, Any]:
    """Return what transformers must be told to quantise a model as it loads it; nothing where none is asked for.

    nf4 is 4 bits and double quantisation. Source: Dettmers et al., QLoRA, NeurIPS 2023, section 3. int8 scales each
    row of weights and each token's activations. Source: Dettmers et al., LLM.int8(), NeurIPS 2022, section 2; its
    decomposition of outliers is left out, because it takes as an outlier what is one in any token of the micro-batch:
    what one example gives would then depend on which others it is computed with.

    Args:
        section: The recipe's `model`.
        auto_model: The transformers class that the model will be loaded with.
        config: The model's own.
        computed_in: What matrix products are computed in.

    Raises:
        ConfigError: The weights are stored quantised already.
    """
    if hasattr(config, "quantization_config"):
        kind = section.quantization or "nf4 or int8"
        raise ConfigError(
            f"{section.path!r} is already quantised.",
            where="model.quantization" if section.quantization else "model.path",
            fix=f"Name the model it was made from; model.quantization makes it {kind}.",
        )
    if not section.quantization:
        return {}
    import torch
    from transformers import BitsAndBytesConfig

    with torch.device("meta"):
        shape = auto_model.from_config(config, trust_remote_code=True)
    heads = [name for name, _ in shape.named_children() if name != shape.base_model_prefix]
    asked: dict[str, dict[str, Any]] = {
        "nf4": {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": computed_in,
        },
        "int8": {"load_in_8bit": True, "llm_int8_threshold": 0.0},
    }
    # Named for int8, and read for both: a head may be new, and then it is trained
    options = asked[section.quantization] | {"llm_int8_skip_modules": heads}
    return {"quantization_config": BitsAndBytesConfig(**options)}


def settle_quantized(model: Any, new_modules: list[str]) -> None:
    """Have a base that was just quantised stay as it is, and not be told of in what is saved.

    Raises:
        ConfigError: A module that is new, and so has to be trained, was quantised too.
    """
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for name in new_modules:
        if isinstance(model.get_submodule(name), (Linear4bit, Linear8bitLt)):
            raise ConfigError(
                f"the checkpoint has no {name}, and new weights cannot be trained in quantised form.",
                where="model.quantization",
                fix="Use a checkpoint that has it, or remove model.quantization.",
            )
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # Else a CPU with bfloat16 repacks the weights, with their scales rounded, in the first pass without
            # gradients: scoring would change what is trained from there on
            module.support_avx512bf16_for_cpu = False
    # An adapter's folder carries this config, and the base it names is not stored quantised
    del model.config.quantization_config


def num_weights(parameter: Any) -> int:
    """Return how many weights a parameter stands for: partitioned by ZeRO-3, or two to a byte."""
    if packed := getattr(parameter, "quant_state", None):
        return packed.shape.numel()
    return getattr(parameter, "ds_numel", None) or parameter.numel()
