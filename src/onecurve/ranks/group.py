"""The process group of checkpoints: a separate gloo group, which can communicate during training."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator

from onecurve.machine.distributed import group_timeout
from onecurve.ranks.lost_rank import RankLost, is_loss


class Group:
    """Implements `checkpoint.peers.Peers`."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.rank, self.world_size = accelerator.process_index, accelerator.num_processes
        self.group = torch.distributed.new_group(backend="gloo", timeout=group_timeout())

    def gather(self, value: Any) -> list[Any]:
        values = [None] * self.world_size
        self._with_all(torch.distributed.all_gather_object, values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        values = [value]
        self._with_all(torch.distributed.broadcast_object_list, values, 0)
        return values[0]

    def barrier(self) -> None:
        self._with_all(torch.distributed.barrier)

    def _with_all(self, collective: Callable[..., object], *arguments: Any) -> None:
        try:
            collective(*arguments, group=self.group)
        except RuntimeError as error:
            if not is_loss(error):
                raise
            raise RankLost(str(error)) from None
