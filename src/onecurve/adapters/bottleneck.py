"""The bottleneck adapter of Houlsby and Pfeiffer, registered as a PEFT method."""

import enum
from dataclasses import dataclass, field
from typing import Any, Literal

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

_BERT = (r"attention\.output\.dense", r"layer\.\d+\.output\.dense")
_LLAMA = (r"self_attn\.o_proj", r"mlp\.down_proj")
_OUTPUTS = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra", "deberta", "deberta-v2"), _BERT),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3"), _LLAMA),
    "distilbert": (r"attention\.out_lin", r"ffn\.lin2"),
    "gpt2": (r"attn\.c_proj", r"mlp\.c_proj"),
    "gpt_neox": (r"attention\.dense", r"mlp\.dense_4h_to_h"),
    "modernbert": (r"attn\.Wo", r"mlp\.Wo"),
    "opt": (r"self_attn\.out_proj", r"layers\.\d+\.fc2"),
}
"""Model type -> the projections (as patterns) at the end of its attention and of its feed-forward."""


class BottleneckType(str, enum.Enum):
    """The method's name, in the shape of `peft.PeftType`."""

    BOTTLENECK = "BOTTLENECK"


@dataclass
class BottleneckConfig(PeftConfig):
    """Settings of a bottleneck adapter: `h + scaling * up(act(down(h)))` after a projection's output `h`.

    Source:
        Houlsby et al., Parameter-Efficient Transfer Learning for NLP, ICML 2019, section 2.1 (arXiv:1902.00751);
        Pfeiffer et al., AdapterFusion, EACL 2021, section 3.2 and appendix B (arXiv:2005.00247).
    """

    variant: Literal["houlsby", "pfeiffer"] = field(
        default="houlsby",
        metadata={"help": "houlsby: after attention and after feed-forward; pfeiffer: after feed-forward only."},
    )
    bottleneck_size: int | None = field(default=None, metadata={"help": "Width of the bottleneck."})
    reduction_factor: int | None = field(
        default=None, metadata={"help": "Or: hidden size divided by that width; 16 when neither is set."}
    )
    non_linearity: str = field(default="relu", metadata={"help": "One of transformers' activations."})
    dropout: float = field(default=0.0, metadata={"help": "On what the adapter adds."})
    scaling: float = field(default=1.0, metadata={"help": "Factor on what the adapter adds."})
    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Names or a pattern of the projections, in place of the variant's own."}
    )
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Projections to leave alone."})
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Only these layers; works with a list of target_modules."}
    )
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "The layers' name in the model."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules to train whole."})
    init_weights: bool = field(default=True, metadata={"help": "Start as the identity."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = BottleneckType.BOTTLENECK
        self.target_modules = _as_set(self.target_modules)
        self.exclude_modules = _as_set(self.exclude_modules)
        self._check()

    def _check(self) -> None:
        if self.bottleneck_size is not None and self.reduction_factor is not None:
            raise ValueError("set bottleneck_size or reduction_factor, not both")
        for name in ("bottleneck_size", "reduction_factor"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and less than 1; got {self.dropout}")
        if self.variant not in ("houlsby", "pfeiffer"):
            raise ValueError(f"variant must be houlsby or pfeiffer; got {self.variant!r}")
        if self.non_linearity not in ACT2FN:
            raise ValueError(f"non_linearity must be one of {', '.join(sorted(ACT2FN))}; got {self.non_linearity!r}")
        if self.layers_to_transform is not None and not isinstance(self.target_modules, set):
            raise ValueError("layers_to_transform works only with a list of target_modules")

    def size(self, hidden: int) -> int:
        """Return the width of the bottleneck for outputs of width `hidden`."""
        return self.bottleneck_size or max(1, hidden // (self.reduction_factor or 16))


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """A projection followed by its adapters."""

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ("bottleneck_act", "bottleneck_dropout", "bottleneck_scaling")

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: BottleneckConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck_down, self.bottleneck_up = nn.ModuleDict(), nn.ModuleDict()
        self.bottleneck_act, self.bottleneck_dropout = nn.ModuleDict(), nn.ModuleDict()
        self.bottleneck_scaling: dict[str, float] = {}
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Add one adapter, drawn from torch's global generator."""
        hidden = _out_features(self.get_base_layer())
        down, up = nn.Linear(hidden, config.size(hidden)), nn.Linear(config.size(hidden), hidden)
        # Houlsby et al., section 3.1: a Gaussian of 1e-2 cut at two deviations; `up` at zero makes it exactly the base.
        nn.init.trunc_normal_(down.weight, std=1e-2, a=-2e-2, b=2e-2)
        nn.init.zeros_(down.bias)
        if config.init_weights:
            nn.init.zeros_(up.weight)
            nn.init.zeros_(up.bias)
        self.bottleneck_down[adapter_name], self.bottleneck_up[adapter_name] = down, up
        self.bottleneck_act[adapter_name] = ACT2FN[config.non_linearity]
        self.bottleneck_dropout[adapter_name] = nn.Dropout(config.dropout)
        self.bottleneck_scaling[adapter_name] = config.scaling
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the projection's output, with what the active adapters add: float [..., hidden]."""
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return result
        for name in self.active_adapters:
            if name in self.bottleneck_down:
                result = result + self._added(name, result).to(result.dtype)
        return result

    def _added(self, name: str, hidden: Tensor) -> Tensor:
        down, up = self.bottleneck_down[name], self.bottleneck_up[name]
        narrow = self.bottleneck_act[name](down(hidden.to(next(down.parameters()).dtype)))
        return self.bottleneck_dropout[name](up(narrow)) * self.bottleneck_scaling[name]

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise ValueError(_UNMERGEABLE)

    def unmerge(self) -> None:
        raise ValueError(_UNMERGEABLE)


class BottleneckModel(BaseTuner):
    """A model whose chosen projections are followed by bottleneck adapters."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012  (PEFT's contract; the variant decides here)

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> PeftConfig:
        if peft_config.target_modules is None:
            outputs = _OUTPUTS.get(model_config["model_type"])
            if outputs is None:
                raise ValueError(
                    f"the output projections of model type '{model_config['model_type']}' are not known: "
                    "name them in target_modules"
                )
            chosen = outputs if peft_config.variant == "houlsby" else outputs[1:]
            peft_config.target_modules = rf".*\b(?:{'|'.join(chosen)})"
        return peft_config

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, BottleneckLayer):
            target.update_layer(adapter_name, peft_config)
            return
        layer = BottleneckLayer(target, adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)


_UNMERGEABLE = "a bottleneck adapter cannot be merged into the base model: it is not linear; keep it as an adapter"


def _as_set(names: Any) -> Any:
    return set(names) if isinstance(names, list) else names


def _out_features(layer: nn.Module) -> int:
    # By attribute, never by weight.shape: under ZeRO-3 the weight is an empty, partitioned tensor.
    if isinstance(layer, nn.Linear):
        return layer.out_features
    if isinstance(layer, Conv1D):
        return layer.nf
    raise ValueError(f"a bottleneck adapter follows linear layers, not {type(layer).__name__}")


# `peft.utils.register_peft_method` writes these three entries, but only for members of the enum `PeftType`, and an enum
# cannot be extended without reaching into its private tables. PEFT and transformers look methods up by value, so an
# enum of our own with the same shape is found wherever a member of PEFT's would be, from_pretrained included.
PEFT_TYPE_TO_CONFIG_MAPPING[BottleneckType.BOTTLENECK] = BottleneckConfig  # type: ignore[index]
PEFT_TYPE_TO_TUNER_MAPPING[BottleneckType.BOTTLENECK] = BottleneckModel  # type: ignore[index]
PEFT_TYPE_TO_PREFIX_MAPPING[BottleneckType.BOTTLENECK] = BottleneckModel.prefix  # type: ignore[index]
