"""An adapter merged into its base: a whole model that needs no PEFT."""

from typing import Any

from onecurve.errors import ConfigError


def merged(model: Any) -> Any:
    """Merge a PEFT model's adapter into its base, which is changed and returned.

    Raises:
        ConfigError: A method that cannot be merged, such as one of virtual tokens.
    """
    method = str(model.peft_config["default"].peft_type.value).lower()
    reason = "it adds to the input, not to the weights"
    if hasattr(model.base_model, "merge_and_unload"):
        try:
            return model.merge_and_unload(safe_merge=True)
        except (ValueError, NotImplementedError) as error:
            reason = str(error)
    raise ConfigError(f"{method} cannot be merged: {reason}.", fix="Use it as an adapter, without --merge.")
