"""Converts checkpoints of onecurve and other tools to plain model folders."""

from onecurve.conversion.from_checkpoint import convert_checkpoint
from onecurve.conversion.from_weights import convert_adapter, convert_weights
from onecurve.conversion.target import Wanted, check_target

__all__ = ["Wanted", "check_target", "convert_adapter", "convert_checkpoint", "convert_weights"]
