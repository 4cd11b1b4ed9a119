"""The model that a run starts from."""

from typing import Literal

from onecurve.config.sections.base import Section


class ModelSection(Section):
    path: str
    """A folder with a model, or a hub name."""
    init: Literal["pretrained", "random"] = "pretrained"
    """`random` draws the weights from the seed and needs only a config.json."""
    tokenizer: str | None = None
    """Where the tokenizer lies, when not beside the model."""
    chat_template: str | None = None
    """A Jinja file with the chat template to use and to save, when not the tokenizer's own."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What frozen weights are kept in; trained ones are float32, or bfloat16 with `optim.rounding`. auto:
    mixed_precision's under PEFT, else float32."""
    quantization: Literal["nf4", "int8"] | None = None
    """Quantise the frozen weights of linear layers as they are loaded, under PEFT: nf4 (4 bits, QLoRA) or int8. The
    rest stays in `dtype`."""
    attn_implementation: str | None = None
    """transformers' attention implementation, such as eager or sdpa; its own choice when absent."""
