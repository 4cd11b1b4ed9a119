"""Training of bfloat16 weights: updated in float32, and rounded so that small updates are not lost."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from onecurve.seeds import stream_key

CARRIED = "carried"
"""The optimizer state that Kahan summation adds: what the weights' last rounding left over, in bfloat16."""


class Rounded(Optimizer):
    """Any optimizer over bfloat16 weights, one at a time: only that one's float32 copies exist, and its moments.

    `stochastic` rounds up or down with the probability that makes the expectation exact; `kahan` keeps what rounding
    left over and adds it to the next update. Source: Zamirai et al., Revisiting BFloat16 training, 2020, section 3.

    Args:
        groups: Parameter groups.
        lr: Their learning rate, until they are given another.
        names: Of the parameters; each has a random stream of its own.
        build: Makes the optimizer of one group.
        rounding: stochastic or kahan.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        names: Mapping[Any, str],
        build: Callable[[list[dict[str, Any]]], Optimizer],
        rounding: str,
    ) -> None:
        super().__init__(groups, {"lr": lr})
        self.names, self.rounding = names, rounding
        # Each over a stand-in that has the values only while it is updated. To make a parameter itself float32 for
        # that moment would have autograd forget DDP's hooks on it, and ranks would go on apart without a word
        self.inner = {
            parameter: build([group | {"params": [nn.Parameter(parameter.new_empty(0, dtype=torch.float32))]}])
            for group in self.param_groups
            for parameter in group["params"]
        }

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter; torch's seed names the run and the step (`seeds.start_stream`)."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.inner[parameter].param_groups[0]["lr"] = group["lr"]
                    self._update(parameter)

    def _update(self, parameter: Any) -> None:
        inner = self.inner[parameter]
        (stand_in,) = inner.param_groups[0]["params"]
        state = self.state[parameter]
        carried = state.pop(CARRIED, None)  # out of sight: optimizers begin where there is no state
        weights = parameter.data.float()  # the parameter's own where a model keeps it in float32
        stand_in.data = weights if carried is None else weights + carried.float()
        stand_in.grad = parameter.grad.float()
        inner.state[stand_in] = state
        inner.step()
        self.state[parameter], updated = inner.state.pop(stand_in), stand_in.data
        stand_in.grad, stand_in.data = None, updated.new_empty(0)
        if parameter.dtype == torch.bfloat16:
            self._round(parameter, updated)

    def _round(self, parameter: Tensor, updated: Tensor) -> None:
        if self.rounding == "kahan":
            parameter.copy_(updated)
            self.state[parameter][CARRIED] = (updated - parameter.float()).bfloat16()
        else:
            parameter.copy_(round_stochastically(updated, stream_key(torch.initial_seed(), self.names[parameter])))


def round_stochastically(values: Tensor, key: int) -> Tensor:
    """Round float32 to bfloat16, up or down by chance, so that the expectation is the value itself.

    Args:
        values: float32, of any shape.
        key: Names the random stream.
    """
    generator = torch.Generator(values.device).manual_seed(key % 2**63)
    noise = torch.randint(2**16, values.shape, dtype=torch.int32, device=values.device, generator=generator)
    # bfloat16 is the upper half of float32: chance carries the lower half over into it, and the rest is cut off
    return ((values.view(torch.int32) + noise) & -(2**16)).view(torch.float32).bfloat16()
