"""Checks that an attention implementation exists and is installed, before any data is encoded."""

from onecurve.config import nearest
from onecurve.errors import ConfigError
from onecurve.machine.optional_packages import require

_KEY = "model.attn_implementation"
_PACKAGES = {
    "flash_attention_2": "flash_attn",
    "flash_attention_3": "flash_attn_interface",
    "flash_attention_4": "flash_attn",
}


def check_attention(name: str | None) -> None:
    """Check `model.attn_implementation`.

    Raises:
        ConfigError: transformers has none of that name, or the package or the GPU that it needs is not there.
    """
    if name is None:
        return
    import torch
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    own = name.removeprefix("paged|")
    if "/" in own:  # a kernel of the hub
        require(("kernels",), _KEY, name)
        return
    known = sorted({"eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()})
    if name not in known:
        raise ConfigError(f"no attention {name!r} in transformers. {nearest(name, known)}", where=_KEY)
    if own in _PACKAGES:
        if not torch.cuda.is_available():
            raise ConfigError(f"{name} needs a GPU, and torch finds none.", where=_KEY, fix="Use sdpa or eager.")
        require((_PACKAGES[own],), _KEY, name)
