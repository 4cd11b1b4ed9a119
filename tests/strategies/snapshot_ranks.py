"""A rank that takes a snapshot, trains on, and puts it back."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from onecurve.machine.distributed import start
from onecurve.model.batch_norm import settle_batch_norm
from onecurve.strategies.plain import Plain
from onecurve.strategies.snapshot import Snapshot


def main(argv: list[str], run: Any = None) -> None:
    accelerator = start([], "unused")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3))
    settle_batch_norm(model, "train")
    strategy = Plain(accelerator, "no", 0.0)
    strategy.prepare(model, torch.optim.SGD(model.parameters(), 0.1), 1)
    wanted = {name: value.clone() for name, value in model.state_dict().items()}
    snapshot = Snapshot(strategy)
    snapshot.take()
    with torch.no_grad():
        for value in strategy.replicas():
            value.add_(7)
    snapshot.restore()
    same = all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())
    kept = sum(values.numel() for values in snapshot.kept.values())
    found = {"same": same, "kept": kept, "whole": sum(value.numel() for value in wanted.values())}
    Path(argv[0], f"rank-{accelerator.process_index}.json").write_text(json.dumps(found))
