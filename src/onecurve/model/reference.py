"""The frozen model that a trained one is compared with: another one, or the run's own before step 1."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from onecurve.adapters.folder import is_adapter
from onecurve.config import Recipe
from onecurve.errors import ConfigError
from onecurve.model.construction import onto
from onecurve.model.identity import other_identity, told_of, weights_identity
from onecurve.model.loading import whole_parameters
from onecurve.model.positions import num_positions
from onecurve.model.reading import set_padding
from onecurve.model.unloadable import explained
from onecurve.strategies.base import Strategy
from onecurve.strategies.precision import DTYPES
from onecurve.tasks.base import OtherModel, Processing


@dataclass(frozen=True)
class Reference:
    """The frozen model: another one, or the run's own before step 1.

    Of a model with a new adapter that is the base, the adapter switched off; except where PEFT has taken a part of the
    base's weights into the adapter (PiSSA and its kin), and where an adapter is trained further. There the model as it
    stands is what the run starts from.
    """

    other: OtherModel | None
    recipe: Recipe
    strategy: Strategy
    reading: Processing
    accelerator: Accelerator

    def identity(self) -> dict[str, Any]:
        """Return what decides the reference's answers: its weights, its config, and the precision."""
        model = self.recipe.model
        parts: dict[str, Any] = {"precision": self.strategy.precision, "dtype": model.dtype}
        if self.other:
            return parts | {"weights": other_identity(self.other)}
        parts |= {
            "weights": weights_identity(model),
            "config": told_of(self.reading.config.to_dict()),
            "quantization": model.quantization,
            "add_tokens": model.add_tokens,
        }
        if self.recipe.peft and not self.is_off():
            parts["peft"] = self.recipe.peft.model_dump()
        if model.init == "random" or model.add_tokens or "peft" in parts:
            parts["seed"] = self.recipe.seed
        return parts

    @contextmanager
    def loaded(self, task: Any) -> Iterator[tuple[Any, Callable[[], AbstractContextManager[Any]]]]:
        """Yield the reference, and the context of its forward passes; freed, or set back, afterwards."""
        if self.other:
            yield self.load(self.other, task), self.autocast
        elif self.is_off():
            unwrapped: Any = self.strategy.unwrapped()
            # PEFT, when it switches an adapter on again, has all of it require gradients: also what is left out
            before = {name: p.requires_grad for name, p in unwrapped.named_parameters()}
            with unwrapped.disable_adapter():
                yield self.strategy.model, self.strategy.autocast
            for name, parameter in unwrapped.named_parameters():
                parameter.requires_grad_(before[name])
        else:
            yield self.strategy.model, self.strategy.autocast

    def is_off(self) -> bool:
        """Whether it is the run's own base, below a new adapter."""
        peft = self.recipe.peft
        if peft is None or peft.moves_base or is_adapter(self.recipe.model.path):
            return False
        return hasattr(self.strategy.unwrapped(), "disable_adapter")

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of another model's forward passes."""
        dtype = DTYPES.get(self.strategy.precision)
        return torch.autocast(self.accelerator.device.type, dtype, enabled=dtype is not None)

    def load(self, other: OtherModel, task: Any) -> Any:
        """Load another model, frozen and whole on every rank.

        Raises:
            ConfigError: It cannot be loaded, or is of another kind, or reads other tokens.
        """
        path, revision, key = other
        dtype = DTYPES.get(self.strategy.precision) or torch.float32
        try:
            with explained(path, dtype, self.accelerator.device), whole_parameters():
                place = str(Path(path).expanduser())
                model, found = task.auto_model().from_pretrained(
                    place,
                    revision=revision or "main",
                    dtype=dtype,
                    output_loading_info=True,
                    **onto(self.accelerator.device, quantized=False),
                )
        except ConfigError as error:
            raise ConfigError(error.what, where=key, fix=error.fix) from None
        if drawn := sorted(found["missing_keys"]):
            raise ConfigError(
                f"{path!r} has no weights for {drawn[0]}"
                + (f" and {len(drawn) - 1} more" if len(drawn) > 1 else "")
                + ": it is no trained model of this kind.",
                where=key,
            )
        with whole_parameters():  # which may build the model's embeddings once more
            positions, longest = num_positions(model.config), self.reading.max_length
        if positions and positions < longest:
            raise ConfigError(
                f"{path!r} has positions for {positions} tokens, and an example of this run may have {longest}.",
                where=key,
                fix=f"Set data.max_length to {positions} or less.",
            )
        rows, needed = model.get_input_embeddings().num_embeddings, len(self.reading.tokenizer)
        if rows < needed:
            raise ConfigError(
                f"{path!r} has embeddings for {rows} tokens, and this run's tokenizer has {needed}: both read the "
                "same tokens.",
                where=key,
                fix="Choose a model with the same tokenizer.",
            )
        set_padding(model.config, self.reading.tokenizer, pretrained=True)  # by which a decoder finds a text's end
        return model.requires_grad_(False).to(self.accelerator.device)
