"""What of a model's architecture is known before its weights load to stand in the way of one curve."""

from typing import Any

from onecurve.config import Recipe
from onecurve.errors import ConfigError

_READS_PADDING = {
    "data2vec-audio": "its convolutions over positions are several, and the later ones read what the first makes of it",
    "sew": "it averages neighbouring frames, padding included",
    "sew-d": "it averages neighbouring frames, padding included",
    "wav2vec2-conformer": "its convolutions read past a clip's end",
    "canine": "it merges neighbouring characters, padding included",
    "convbert": "its convolutions read past a text's end",
    "fnet": "its Fourier transform mixes all positions and takes no attention mask",
    "mobilebert": "each position reads its neighbours' embeddings, padding's included",
    "nystromformer": "its landmarks are means over all positions, padding included",
    "yoso": "it normalises over all positions, padding included",
}
"""Encoders whose logits of a text or clip depend on how far it is padded, by model type: shown by tests/zoo and
tests/tasks/test_sound.py, see docs/models.md."""
_LAYER_NORM = (
    " Or take a model that reads no padding: feat_extract_norm: layer in its config.json, as in wav2vec2-large-lv60, "
    "wav2vec2-xls-r, hubert-large and wavlm-large."
)


def reads_padding(config: Any) -> bool:
    """Whether what a model says of a text or clip depends on how far it is padded."""
    return bool(_reads_padding(config))


def _of_its_text(config: Any, known: Any) -> str:
    """Say how to get at the language model in a model of text and images; empty where it has none for the task."""
    text = config.get_text_config()
    if text is config or type(text) not in known:
        return ""
    return (
        f"Its text part, of type {text.model_type}, can be trained: save it on its own, as README.md shows under "
        "Loading a model, and set model.path to that folder."
    )


def check_architecture(recipe: Recipe, auto_model: Any, config: Any) -> None:
    """Refuse a model that this task has no class for, or that would not draw one curve.

    Args:
        recipe: The run.
        auto_model: The task's `AutoModelFor...` class.
        config: The model's.

    Raises:
        ConfigError: It cannot be trained so; the message says why.
    """
    kind, path = config.model_type, recipe.model.path
    known = getattr(auto_model, "_model_mapping", None)  # a task of one's own may name a model class itself
    if known is not None and type(config) not in known and not hasattr(config, "auto_map"):
        raise ConfigError(
            f"{path!r} is a model of type {kind}, for which transformers has no {auto_model.__name__}.",
            where="model.path",
            fix=_of_its_text(config, known) or "Use another model for this task.",
        )
    alone = recipe.train.micro_batch_size == recipe.eval_micro_batch_size == 1
    if (why := _reads_padding(config)) and not alone:
        read = "clip" if hasattr(config, "conv_kernel") and kind != "convbert" else "text"
        raise ConfigError(
            f"{path!r} is a model of type {kind}, whose result for a {read} depends on the padding after it: "
            f"{why}. The loss would depend on how a batch is cut into micro-batches.",
            where=recipe.train.cut_by,
            fix=f"Set train.micro_batch_size to 1 (and eval.micro_batch_size, if set), so that no {read} is padded."
            + (_LAYER_NORM if read == "clip" else ""),
        )
    if getattr(config, "attention_type", None) == "block_sparse":
        raise ConfigError(
            f"{path!r} attends to blocks that depend on the length to which a text is padded, and to all tokens from "
            "the first short batch on (attention_type: block_sparse).",
            where="model.path",
            fix="Set attention_type in its config.json to original_full.",
        )
    languages = getattr(config, "languages", None)
    if kind == "xmod" and getattr(config, "default_language", None) not in (languages or ()):
        raise ConfigError(
            f"{path!r} has an adapter for each language, and its config.json does not say which to use.",
            where="model.path",
            fix=f"Set default_language there, to one of {', '.join(languages or ())}.",
        )


def _reads_padding(config: Any) -> str:
    """Return how a model comes to read padding; empty where it does not."""
    if why := _READS_PADDING.get(config.model_type):
        return why
    if getattr(config, "feat_extract_norm", None) == "group":
        return "its first convolution is normalised over all of a clip, padding included (feat_extract_norm: group)"
    if getattr(config, "conv_pos_batch_norm", False):
        return "the batch normalisation before its position convolution makes something of padding"
    if getattr(config, "add_adapter", False):
        return "the convolutions of its adapter read past a clip's end (add_adapter)"
    return ""
