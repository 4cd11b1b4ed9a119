"""A rank that tells how long each of its process groups waits, once everything that makes one has made it."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import DistributedType

from onecurve.config import TrainSection
from onecurve.machine.distributed import start
from onecurve.ranks.group import Group
from onecurve.strategies.plain import Plain
from onecurve.strategies.zero import Zero
from tests.strategies.zero_ranks import build


def main(argv: list[str], run: Any) -> None:
    accelerator = start([], "unused", TrainSection(hang_timeout=timedelta(minutes=float(argv[0]))))
    is_zero = accelerator.distributed_type == DistributedType.DEEPSPEED
    strategy = Zero(accelerator, "no", 0.0, 1) if is_zero else Plain(accelerator, "no", 0.0)
    model = build(frozen=False)
    strategy.prepare(model, torch.optim.SGD(model.parameters(), 0.1), 1)
    of_checkpoints = Group(accelerator)
    assert of_checkpoints.gather(accelerator.process_index) == [0, 1]
    groups = dist.distributed_c10d._world.pg_map
    waits = [group._get_backend(torch.device("cpu")).options._timeout.total_seconds() / 60 for group in groups]
    Path(argv[1], f"rank-{accelerator.process_index}.json").write_text(json.dumps(waits))
