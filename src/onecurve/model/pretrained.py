"""How a checkpoint fits a model, told from the names and shapes in its files before any weights are read."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from onecurve.errors import ConfigError

_NAMED = 5
_MATCH = "Give the config.json that belongs to the weights (vocab_size, num_hidden_layers, ...)"
_CLASSIFIER = f"Only a new head is drawn at random. {_MATCH}, or the weights that belong to it."
_LANGUAGE_MODEL = (
    "All weights of a language model must be in the checkpoint, its head included; an encoder, or a model saved "
    f"without its head, cannot be used. {_MATCH}, or set model.init to random."
)
_COMPUTED = re.compile(
    r"(^|\.)(masked_bias|inv_freq|position_ids|token_type_ids|causal_mask|attn\.bias|attention\.bias)$"
)
"""Masks and positions that earlier versions of transformers stored with the weights. It lists them for some models."""


@dataclass(frozen=True)
class Fit:
    """What a checkpoint gives a model, and the parameters of the head that it does not give."""

    skeleton: Any
    """The model on the meta device. What the checkpoint gives is marked as transformers marks it, so that its own
    initialisation leaves that alone."""
    new: dict[str, tuple[int, ...]]
    """The parameters to draw, and their shapes."""
    reshaped: dict[str, tuple[int, ...]]
    """Those of them that the checkpoint has in another shape, and that shape: a head for other labels."""

    @property
    def new_modules(self) -> list[str]:
        """The modules that own the new parameters."""
        return sorted({name.rpartition(".")[0] for name in self.new})

    def drawing(self, names: Iterable[str]) -> "Fit":
        """Return it with more parameters to draw, though the checkpoint gives them."""
        shapes = {name: tuple(self.skeleton.get_parameter(name).shape) for name in names}
        return replace(self, new=self.new | shapes)

    def describe_new(self) -> str:
        """Name what is drawn; empty where nothing is."""
        shapes = {name: f"{list(shape)}" for name, shape in self.new.items()}
        shapes |= {n: f"{shapes[n]} instead of the checkpoint's {list(there)}" for n, there in self.reshaped.items()}
        return ", ".join(f"{name} {shape}" for name, shape in shapes.items()) + (": drawn at random" if shapes else "")


def read_fit(from_pretrained: Callable[..., tuple[Any, dict[str, Any]]], path: str, frozen: bool = False) -> Fit:
    """Compare a checkpoint with the model that its config describes, by transformers' own rules for names.

    Only a head may be new: what lies outside the base model, and the pooler through which a classifier reads an encoder
    and which a masked language model's checkpoint does not have. A language model's head counts as pretrained, but for
    one that only fills in masks. The vector that stands in place of a sound's masked frames may be new too, as only
    masks in training read it, where it is trained.

    Args:
        from_pretrained: The model class's, with everything bound but the device.
        path: The checkpoint's, for messages.
        frozen: Whether the base model's weights stay as they are, under an adapter.

    Raises:
        ConfigError: Any other weight is missing, of another shape, or in the checkpoint but not in the model.
    """
    try:
        # On the meta device transformers reads the headers, not the weights
        skeleton, found = from_pretrained(
            device_map="meta", dtype="float32", ignore_mismatched_sizes=True, output_loading_info=True
        )
    except RuntimeError as error:  # a damaged file, or stored weights that cannot be converted to today's names
        line = str(error).strip().split("\n")[0]
        raise ConfigError(
            f"the weights of {path!r} cannot be read: {line}.",
            where="model.path",
            fix="If a file is cut off or damaged, copy or download it again.",
        ) from None
    shapes = {name: (tuple(there), tuple(here)) for name, there, here in found["mismatched_keys"]}
    head = _Head(skeleton)
    _check_mask_vector([name for name in found["missing_keys"] if frozen and _is_mask_vector(name)], path)
    wrong = _Wrong(
        missing=sorted(
            name for name in found["missing_keys"] if not head.may_be_missing(name) and not _is_mask_vector(name)
        ),
        reshaped={name: shapes[name] for name in sorted(shapes) if not head.may_be_reshaped(name)},
        dropped=sorted(name for name in found["unexpected_keys"] if head.would_drop(name)),
        unused=sorted(found["unexpected_keys"]),
    )
    if wrong.missing or wrong.reshaped or wrong.dropped:
        raise ConfigError(
            f"the weights of {path!r} are not those of the {type(skeleton).__name__} that its config.json describes: "
            f"{wrong}.",
            where="model.path",
            fix=_LANGUAGE_MODEL if head.is_pretrained else _CLASSIFIER,
        )
    new = {*found["missing_keys"], *shapes}
    return Fit(
        skeleton,
        {name: tuple(p.shape) for name, p in skeleton.named_parameters() if name in new},
        {name: there for name, (there, _) in shapes.items()},
    )


def _is_mask_vector(name: str) -> bool:
    return name.rpartition(".")[2] == "masked_spec_embed"


def _check_mask_vector(missing: list[str], path: str) -> None:
    """Refuse masks of sounds where what stands in place of masked frames would stay as it was drawn."""
    if missing:
        raise ConfigError(
            f"{path!r} has no {missing[0]}, the vector that replaces masked frames, and an adapter (peft) would leave "
            "it as it is drawn. Frames are masked by this setting, or by mask_time_prob in the model's config.json.",
            where="task.spec_augment",
            fix="Set it to {time_prob: 0}, with feature_prob to mask features; or use a checkpoint with the vector, or "
            "full fine-tuning, which trains it.",
        )


class _Head:
    """What of a model is its head, and so what a checkpoint need not give."""

    def __init__(self, model: Any) -> None:
        self.model, self.base = model, model.base_model
        self.prefix = f"{model.base_model_prefix}."
        self.predicts_tokens = self.base is model or model.get_output_embeddings() is not None
        self.is_pretrained = self.predicts_tokens and not _only_fills_masks(model)

    def may_be_missing(self, name: str) -> bool:
        if _is_mask_vector(name):
            return True
        if self.base is self.model:  # an encoder alone, whose last hidden states are read: nothing reads its pooler
            return name.startswith("pooler.")
        return self.may_be_reshaped(name) or (not self.is_pretrained and name.startswith(f"{self.prefix}pooler."))

    def may_be_reshaped(self, name: str) -> bool:
        return not self.is_pretrained and not name.startswith(self.prefix)

    def would_drop(self, name: str) -> bool:
        """Whether the base model has the part that this weight of the checkpoint is of, but not the weight."""
        if _COMPUTED.search(name):
            return False
        part = name.removeprefix(self.prefix).partition(".")[0]
        return part in dict(self.base.named_children()) or self._is_switched_off(name)

    def _is_switched_off(self, name: str) -> bool:
        """Whether a language model's head has the layer, without this weight: a bias that the config leaves out."""
        owner, _, own = name.rpartition(".")
        if not self.predicts_tokens or not owner:
            return False
        module = dict(self.model.named_modules()).get(owner)
        return isinstance(module, nn.Module) and own in module._parameters


def _only_fills_masks(model: Any) -> bool:
    """Whether a model's head is for masked language modelling alone: many encoders are published without theirs."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    def has(auto_model: Any) -> bool:
        known = auto_model._model_mapping
        return type(model.config) in known and known[type(model.config)] is type(model)

    return has(AutoModelForMaskedLM) and not has(AutoModelForCausalLM) and not has(AutoModelForSeq2SeqLM)


@dataclass(frozen=True)
class _Wrong:
    missing: list[str]
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    """Name -> its shape in the checkpoint, and the model's."""
    dropped: list[str]
    unused: list[str]
    """Everything that the checkpoint has and the model has not, whether that is wrong or not."""

    def __str__(self) -> str:
        shapes = [f"{name} {list(there)} instead of {list(here)}" for name, (there, here) in self.reshaped.items()]
        told = {"missing": self.missing, "of another shape": shapes, "that the model would not use": self.dropped}
        if self.missing and not self.dropped:  # under other names?
            told["of other names"] = self.unused
        return "; ".join(f"{len(names)} {what} ({_first(names)})" for what, names in told.items() if names)


def _first(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
