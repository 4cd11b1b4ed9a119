"""A rank that trains a model whose first passes run one of its branches each, beside plain torch over all passes."""

import json
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from onecurve.checkpoint import Alone, TensorWindow, Writer, read_state
from onecurve.checkpoint.retention import Retention
from onecurve.config import RegularizationSection
from onecurve.errors import TrainingError, UserError
from onecurve.machine.distributed import start, uses_deepspeed
from onecurve.ranks.group import Group
from onecurve.resume import Checkpoints
from onecurve.strategies.average import Average
from onecurve.strategies.base import Strategy

PASSES, STEPS = 2, 4
LATE = "branches.2"
"""The branch that no rank runs before step 3."""


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 4)
        self.branches = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.last = nn.Linear(4, 1)

    def forward(self, x: Tensor, branches: list[int]) -> Tensor:
        x = self.first(x)
        return self.last(torch.tanh(sum(self.branches[i](x) for i in branches))).pow(2).sum()


def given(step: int, rank: int, number: int) -> tuple[Tensor, list[int]]:
    """Return a pass's inputs and branches: until step 3 one, another one on each rank; from then on all."""
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(100 * step + 10 * rank + number))
    return x, [0, 1, 2] if step > 2 else [(rank + number + step) % 2]


def build(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.5)


def strategy_of(accelerator: Any) -> Strategy:
    if uses_deepspeed():
        from onecurve.strategies.zero import Zero

        return Zero(accelerator, "no", 0.0, 1)
    from onecurve.strategies.plain import Plain

    return Plain(accelerator, "no", 0.0)


def train(strategy: Strategy, accelerator: Any, step: int) -> None:
    for number in range(PASSES):
        strategy.begin_pass(last=number == PASSES - 1)
        strategy.backward(strategy.model(*given(step, accelerator.process_index, number)))
    strategy.update()


def train_plainly(model: nn.Module, optimizer: torch.optim.Optimizer, step: int, ranks: int) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for rank in range(ranks):
        for number in range(PASSES):
            (model(*given(step, rank, number)) / ranks).backward()
    optimizer.step()


def save(folder: Path, strategy: Strategy, accelerator: Any, step: int) -> None:
    """Save as earlier versions did: without optimizer state of what never had a gradient."""
    windows = [w for w in strategy.windows(once=True) if w.key == "param" or not w.name.startswith(LATE)]
    pieces = [TensorWindow(f"{w.key}/{w.name}", w.view, w.offset, w.numel, w.shape) for w in windows]
    peers = Group(accelerator) if accelerator.num_processes > 1 else Alone()
    writer = Writer(folder, peers, Retention(1), "stop")
    recipe = {"eval": {"best_metric": None}, "task": {}}
    state = {"loss_scale": strategy.loss_scale.state(), "best": {}, "history": {}, "recipe": recipe, "step": step}
    writer.save(step, pieces, state)
    writer.wait()


def load(folder: Path, strategy: Strategy, accelerator: Any) -> None:
    ignored = SimpleNamespace(
        load=lambda *state: "",
        windows=lambda: (),
        make_room=lambda state, keys: [],
        dev="",
        average=Average(strategy, RegularizationSection()),
    )
    run: Any = SimpleNamespace(
        strategy=strategy,
        left_out=[],
        best=ignored,
        history=ignored,
        peers=Group(accelerator) if accelerator.num_processes > 1 else Alone(),
    )
    run._pieces = lambda once: Checkpoints._pieces(run, once)
    Checkpoints._load(run, folder, read_state(folder))


def main(argv: list[str], run: Any) -> None:
    """Train; `told` says which parameters the strategy is told of, `saved` is where a checkpoint goes or comes from."""
    folder, told, saved, source = Path(argv[0]), argv[1], argv[2], argv[3]
    accelerator = start([], "unused")
    torch.manual_seed(0)
    model = Model()
    plain = deepcopy(model)
    plain_optimizer, strategy = build(plain), strategy_of(accelerator)
    sometimes = [name for name, _ in model.named_parameters() if told == "told" and "branches" in name]
    found: dict[str, Any] = {"error": "", "apart": {}}
    try:
        strategy.prepare(model, build(model), PASSES, sometimes)
        for step in range(1, STEPS + 1):
            train_plainly(plain, plain_optimizer, step, accelerator.num_processes)
            if source and step < 3:
                continue
            if source and step == 3:
                load(Path(source) / "step-00000002", strategy, accelerator)
            train(strategy, accelerator, step)
            if saved and step == 2:
                save(Path(saved), strategy, accelerator, step)
    except (TrainingError, UserError) as error:
        found["error"] = str(error)
        raise
    finally:
        for window in strategy.windows() if not found["error"] else ():
            parameter = plain.get_parameter(window.name)
            whole = parameter.data if window.key == "param" else plain_optimizer.state[parameter][window.key]
            expected = whole.reshape(-1)[window.offset : window.offset + len(window.view)]
            found["apart"][f"{window.key}/{window.name}"] = float((window.view - expected).abs().max())
        (folder / f"rank-{accelerator.process_index}.json").write_text(json.dumps(found))
