"""Parameter-efficient fine-tuning: PEFT's methods by PEFT's own names, and one of ours carried by PEFT."""

from onecurve.adapters.attach import add_adapter
from onecurve.adapters.bottleneck import BottleneckConfig, BottleneckModel
from onecurve.adapters.fields import check_adapter, virtual_tokens

__all__ = ["BottleneckConfig", "BottleneckModel", "add_adapter", "check_adapter", "virtual_tokens"]
