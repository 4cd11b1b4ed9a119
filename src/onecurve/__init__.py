"""onecurve: one fine-tuning run, one curve, wherever it is launched."""

__version__ = "0.1.0"
