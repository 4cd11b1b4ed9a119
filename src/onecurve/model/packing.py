"""Packing: the examples of a micro-batch in one row without padding, with attention within each example."""

import inspect
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onecurve.config import Recipe
from onecurve.data.collation import as_scored, stand_in
from onecurve.data.splits import Split
from onecurve.errors import ConfigError
from onecurve.losses.chunked_head import whole_logits
from onecurve.machine.accelerator import on_host, to_device
from onecurve.machine.memory import ran_out
from onecurve.model.attention_kernels import fastest_attention
from onecurve.model.float8 import in_full_precision
from onecurve.model.packed_attention import NAME, Documents
from onecurve.strategies.base import Strategy
from onecurve.strategies.precision import DTYPES
from onecurve.tasks.base import Batch, Example, Processing, Task

_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
"""The largest difference, in standard deviations of the logits, that rounding explains."""


def pack(
    strategy: Strategy, recipe: Recipe, precision: str, task: Task, splits: Sequence[Split], reading: Processing
) -> str:
    """Have a model run its micro-batches packed, if it can and the recipe asks for it.

    That it can is shown, not assumed: two training examples must get the logits that they get with padding, in the
    precision of training, because other kernels run there; and in float32 too where the weights are, because half
    precision hides small differences. Every rank calls this: under ZeRO-3 a forward pass needs all ranks.

    Args:
        strategy: Has taken the model over.
        recipe: Its `train.packing` is off, on or auto.
        precision: What the run computes in: no, bf16, fp16, fp8.
        task: Collates examples and knows what the model is given.
        splits: Of the data; the first is what is trained on.
        reading: Made the examples.

    Returns:
        With `auto`, why it is not packed where it is not; else nothing.

    Raises:
        ConfigError: The recipe asks for packing, and this model cannot.
    """
    asked = recipe.train.packing
    if asked == "off":
        return ""
    model: Any = strategy.unwrapped()
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    keys = recipe.regularization.on_embeddings
    reason = f"regularization.{keys[0]} needs each example's embeddings apart" if keys else ""
    reason = reason or _obstacle(model, base, recipe, longest=max(int(split.lengths.max()) for split in splits))
    if not reason:
        packing = Packing(base)
        batch = as_scored(task, [stand_in(task, example) for example in _two_examples(splits[0])], reading)
        dtypes = {parameter.dtype for parameter in model.parameters()}
        # Two passes are not worth compiling for
        with whole_logits(base), in_full_precision(base), torch.compiler.set_stance("force_eager"):
            with strategy.autocast():
                reason = _difference(packing, strategy.model, task, batch, dtypes | {DTYPES.get(precision)})
            if not reason and precision in DTYPES and dtypes == {torch.float32}:
                reason = _difference(packing, model, task, batch, dtypes)
        if reason:
            packing.remove()
    if reason and asked == "on":
        raise ConfigError(f"micro-batches cannot be packed: {reason}.", where="train.packing", fix="Set it to auto.")
    return f"packing   off: {reason}" if reason else ""


@dataclass(frozen=True)
class _Layout:
    """Where the tokens of a packed row belong in the padded batch."""

    tokens: Tensor
    """int64 [tokens]: of each, its place in the flattened batch."""
    shape: torch.Size
    """(examples, longest example) of the padded batch."""

    def pad(self, row: Tensor) -> Tensor:
        """Return a packed row [1, tokens, size] as a padded batch [examples, longest, size], zero where padded."""
        padded = row.new_zeros(self.shape.numel(), row.shape[-1]).index_copy(0, self.tokens, row[0])
        return padded.view(*self.shape, -1)


class Packing:
    """Hooks on a model's backbone (everything below its head): padded batches in, padded hidden states out.

    So nobody above knows of it: heads, tasks and wrappers see what they always see.
    """

    def __init__(self, base: Any) -> None:
        """Install the hooks on `base`, a transformers model without wrappers."""
        self.base, self.backbone = base, base.base_model
        base.packing = self
        self.before = base.config._attn_implementation
        base.set_attn_implementation(NAME)
        self.signature = inspect.signature(self.backbone.forward)
        self.open_name = _open_name(self.signature)
        self.first_position = _first_position(self.backbone)
        self.enabled = True
        self.layout: _Layout | None = None
        """Of the batch that the backbone is running; None outside."""
        self.handles = [
            self.backbone.register_forward_pre_hook(self._enter, with_kwargs=True),
            self.backbone.register_forward_hook(self._leave, always_call=True),
        ]
        if isinstance(pooler := getattr(self.backbone, "pooler", None), nn.Module):
            self.handles.append(pooler.register_forward_pre_hook(self._pool))

    def remove(self) -> None:
        """Leave the model as it was."""
        for handle in self.handles:
            handle.remove()
        self.base.set_attn_implementation(self.before)
        del self.base.packing

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Leave batches padded for a while."""
        self.enabled = False
        try:
            yield
        finally:
            self.enabled = True

    def _enter(self, _: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        given = self.signature.bind_partial(*args, **kwargs).arguments
        extra = given.pop(self.open_name, {})
        ids, mask = given.get("input_ids"), given.get("attention_mask")
        if not self.enabled or ids is None or mask is None or given.get("past_key_values") is not None:
            return None
        here = on_host(mask).numpy()  # asked of the device, each number would have the host wait
        lengths, places = here.sum(1), np.flatnonzero(here)
        tokens = to_device(torch.from_numpy(places), ids.device)
        self.layout = _Layout(tokens, ids.shape)
        packed = {n: v.flatten()[tokens][None] for n, v in given.items() if _is_like(v, ids)}
        boundaries = np.concatenate(([0], lengths.cumsum()))
        positions = np.arange(len(places)) - boundaries[:-1].repeat(lengths) + self.first_position
        ends = to_device(torch.from_numpy(boundaries.astype(np.int32)), ids.device)
        told = {
            "position_ids": to_device(torch.from_numpy(positions), ids.device)[None],
            # Of four dimensions: transformers takes it for a finished mask and makes none
            "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids.device),
            "documents": Documents(lengths.tolist(), ends),
        }
        if "use_cache" in self.signature.parameters:
            told["use_cache"] = False
        return (), {**given, **extra, **packed, **told}

    def _leave(self, _: nn.Module, __: Any, output: Any) -> Any:
        layout, self.layout = self.layout, None
        if layout is not None and output is not None:
            output.last_hidden_state = layout.pad(output.last_hidden_state)
        return output

    def _pool(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        return (self.layout.pad(args[0]), *args[1:]) if self.layout else None


def _is_like(value: Any, ids: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == ids.shape


def _open_name(signature: inspect.Signature) -> str:
    """Return the name of `**kwargs`; empty without."""
    return next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), "")


def _first_position(backbone: Any) -> int:
    """Return the id of a text's first position: RoBERTa and its kin count from behind the padding's."""
    embedding = getattr(getattr(backbone, "embeddings", None), "position_embeddings", None)
    padding = getattr(embedding, "padding_idx", None)
    return 0 if padding is None else padding + 1


def _obstacle(model: Any, base: Any, recipe: Recipe, longest: int) -> str:
    """Return what stands in the way that the model tells of itself; empty when nothing does."""
    kind, asked = type(base).__name__, recipe.model.attn_implementation
    if asked not in (None, "sdpa"):
        return f"model.attn_implementation is {asked}"
    if any(c.is_prompt_learning or c.is_adaption_prompt for c in getattr(model, "peft_config", {}).values()):
        return "the adapter puts virtual tokens before each example"
    if base.config.is_encoder_decoder:
        return f"{kind} has an encoder and a decoder"
    if not base._supports_attention_backend or not base._can_set_attn_implementation():
        return f"{kind} does not attend through transformers' attention interface"
    signature = inspect.signature(base.base_model.forward)
    if "position_ids" not in signature.parameters or not _open_name(signature):
        return f"{kind} has no position_ids argument, or does not pass extra arguments to its layers"
    return _layer_obstacle(base, longest)


def _layer_obstacle(base: Any, longest: int) -> str:
    kind, config = type(base).__name__, base.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    layers = set(getattr(config, "layer_types", None) or (["sliding_attention"] if window else ["full_attention"]))
    if unknown := sorted(layers - {"full_attention", "sliding_attention"}):
        return f"{kind} has layers of {', '.join(unknown)}"
    # No window cuts a document that is no longer than the window is to one side
    looks_both_ways = not all(getattr(module, "is_causal", True) for module in base.modules())
    if "sliding_attention" in layers and longest > (window or 0) // (2 if looks_both_ways else 1):
        return f"{kind} attends within a sliding window of {window} tokens, and examples have up to {longest}"
    return ""


def _two_examples(split: Split) -> list[Example]:
    """Return the shortest example and one of middle length."""
    return split.take(split.examples.short_and_middle())


@torch.no_grad()
def _difference(packing: Packing, model: Any, task: Task, batch: Batch, dtypes: Collection[Any]) -> str:
    """Run examples packed and padded; return how their logits differ where rounding to `dtypes` does not explain it."""
    model.eval()
    device = next(model.parameters()).device
    batch = {name: to_device(tensor, device) for name, tensor in batch.items()}
    kind = type(packing.base).__name__
    with fastest_attention(device):
        try:
            packed = task.forward(model, batch)
        except (TypeError, ValueError, IndexError, RuntimeError) as error:
            if ran_out(error):
                raise
            return f"{kind} cannot run a packed row ({str(error).splitlines()[0]})"
        with packing.suspended():
            padded = task.forward(model, batch)
    tolerance = max(_TOLERANCE[dtype] for dtype in dtypes if dtype in _TOLERANCE)
    for ours, theirs in zip(_tensors(packed), _tensors(padded), strict=True):
        apart = float((ours - theirs).abs().max() / theirs.float().std().clamp_min(1e-12))
        if apart > tolerance:
            return f"{kind} gives different logits for packed examples ({apart:.1e} standard deviations apart)"
    return ""


def _tensors(outputs: Any) -> list[Tensor]:
    return list(outputs.values()) if isinstance(outputs, dict) else [outputs]
