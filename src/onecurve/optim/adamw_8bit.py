"""AdamW whose moments take a byte each, in a form that checkpoints can hold."""

from typing import Any

import torch
from bitsandbytes.optim import AdamW8bit as Upstream
from torch import Tensor


class AdamW8bit(Upstream):
    """bitsandbytes' own, with a state that consists of tensors which belong to one parameter each.

    Moments of 4,096 values and more are codes, scaled by blocks of 256; smaller ones are float32. Source: Dettmers et
    al., 8-bit optimizers via block-wise quantization, ICLR 2022.
    """

    def update_step(self, group: dict[str, Any], p: Tensor, gindex: int, pindex: int) -> None:
        """Update one parameter. Upstream counts its steps with a number, and keeps in it what all codes stand for."""
        for name, values in self.name2qmap.items():
            self.name2qmap[name] = values.to(p.device)
        maps = {"qmap1": self.name2qmap["dynamic"], "qmap2": self.name2qmap["udynamic"]}
        kept = {key: value for key, value in self.state[p].items() if key not in maps}
        steps = int(kept["step"])
        self.state[p] = kept | maps | {"step": steps}
        super().update_step(group, p, gindex, pindex)
        self.state[p] = kept | {"step": torch.tensor(float(steps + 1))}
