"""The model to fine-tune."""

from typing import Literal

from onecurve.config.sections.base import Section


class ModelSection(Section):
    path: str
    """A local model folder, or a hub name."""
    init: Literal["pretrained", "random"] = "pretrained"
    """`random` initialises all weights from the seed and needs only a config.json."""
    tokenizer: str | None = None
    """Folder or hub name of the tokenizer, if not the same as `path`."""
    add_tokens: list[str] | None = None
    """Tokens to add to the tokenizer and, at the mean of its rows, to the model's vocabulary. With PEFT their rows are
    trained and saved with the adapter. Also names tokens that the tokenizer has beyond the model's vocabulary."""
    chat_template: str | None = None
    """A Jinja file with the chat template to use and save; default: the tokenizer's own."""
    revision: str | None = None
    """Branch, tag or commit of a hub model, and of its tokenizer; a local folder has none."""
    tokenizer_revision: str | None = None
    """Branch, tag or commit of `tokenizer`, where that is a hub name."""
    trust_remote_code: bool = False
    """Run the Python code that comes with the model or tokenizer, where transformers has no class of its own for it.
    Its hash is recorded, and a run does not resume with other code."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Storage dtype of frozen weights; trained weights are float32, or bfloat16 with `optim.rounding`. auto: the dtype
    of mixed_precision with PEFT, else float32."""
    quantization: Literal["nf4", "int8"] | None = None
    """Quantise the frozen weights of linear layers at loading (needs PEFT): nf4 (4 bits, QLoRA) or int8. All other
    weights stay in `dtype`."""
    batch_norm: Literal["frozen", "train"] = "frozen"
    """Layers of batch normalisation. frozen: they normalise by the statistics they were loaded with. train: by those of
    each micro-batch, and move them; then the curve depends on the micro-batch size."""
    attn_implementation: str | None = None
    """Attention implementation of transformers, such as eager or sdpa; default: transformers' choice."""
