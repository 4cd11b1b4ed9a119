"""A rank that trains a little and holds its strategy's windows against DeepSpeed's accessors and plain torch."""

import json
from copy import deepcopy
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from onecurve.config import OptimSection
from onecurve.machine.distributed import start, uses_deepspeed
from onecurve.optim import build_optimizer
from onecurve.strategies.base import Strategy

LR = 0.01
MOMENTS = ("exp_avg", "exp_avg_sq")


class Model(nn.Module):
    """Odd sizes, so that shares of two end in padding and start inside rows; a frozen parameter in between."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(7, 5)
        self.frozen = nn.Linear(5, 5)
        self.norm = nn.LayerNorm(5)
        self.last = nn.Linear(5, 3)
        self.scale = nn.Parameter(torch.ones(1))
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.last(self.norm(torch.tanh(self.frozen(self.first(x))))) * self.scale).pow(2).sum()


class Rank:
    """Collects what it finds: `problems`, and how many tensors it has `compared`."""

    def __init__(self, groups: int, precision: str) -> None:
        self.accelerator = start([], "unused")
        torch.manual_seed(0)
        model = Model()
        self.plain = deepcopy(model)
        self.plain_optimizer = self._optimizer(self.plain, groups)
        self.strategy = self._strategy(precision)
        self.strategy.prepare(model, self._optimizer(model, groups), 1)
        self.names = [name for name, parameter in self.plain.named_parameters() if parameter.requires_grad]
        # DeepSpeed finds moments by name only where there is one group, or parameters lie apart
        self.asks_moments = uses_deepspeed() and (groups == 1 or self.strategy.stage == 3)
        self.room = {"rtol": 1e-4, "atol": 1e-6} if precision == "no" else {"rtol": 0.05, "atol": 0.02}
        self.problems: list[str] = []
        self.compared = 0

    def _optimizer(self, model: nn.Module, groups: int) -> torch.optim.Optimizer:
        if groups == 1:
            return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], LR, weight_decay=0.0)
        optimizer = build_optimizer(model, OptimSection(lr=LR, weight_decay=0.5))
        assert len(optimizer.param_groups) == 2
        return optimizer

    def _strategy(self, precision: str) -> Strategy:
        if uses_deepspeed():
            from onecurve.strategies.zero import Zero

            return Zero(self.accelerator, precision, 0.0, 1)
        from onecurve.strategies.plain import Plain

        return Plain(self.accelerator, precision, 0.0)

    def train(self, step: int) -> None:
        """Take one step, and the same one without any strategy: both ranks' inputs, in one process."""
        inputs = [torch.randn(4, 7, generator=torch.Generator().manual_seed(10 * step + rank)) for rank in (0, 1)]
        self.strategy.begin_pass(last=True)
        with self.strategy.autocast():
            loss = self.strategy.model(inputs[self.accelerator.process_index])
        self.strategy.backward(loss)
        self.strategy.update()
        (sum(self.plain(x) for x in inputs) / 2).backward()
        self.plain_optimizer.step()
        self.plain_optimizer.zero_grad()

    def check(self, when: str, exactly: dict[tuple[str, str], Tensor] | None = None) -> None:
        """Reassemble every tensor and hold it against all who know it.

        Not against the model's own: to gather that would make ZeRO-3 fetch what `refresh` must have brought in line.
        """
        for once in (False, True):
            whole = self.reassembled(once)
            wanted = {(name, key) for name in self.names for key in ("param", *MOMENTS, "step")}
            if whole.keys() != wanted:
                self.problems.append(f"{when}: windows of {sorted(whole.keys() ^ wanted)}")
            for (name, key), value in whole.items():
                self._compare(f"{when}: {key} of {name}, plain torch", value, self._expected(name, key), **self.room)
                if exactly and (name, key) in exactly:
                    self._compare(f"{when}: {key} of {name}, written", value, exactly[name, key])
                if (asked := self._asked_of_deepspeed(name, key)) is not None:
                    self._compare(f"{when}: {key} of {name}, DeepSpeed's", value, asked)

    def check_the_model(self) -> None:
        """Hold the windows against the parameters as the model has them."""
        whole = self.reassembled(once=False)
        for name, value in self.strategy.full_parameters(trained_only=True):
            self._compare(f"{name} as the model has it", value, whole[name, "param"])

    def reassembled(self, once: bool) -> dict[tuple[str, str], Tensor]:
        """Put all ranks' windows together; with `once`, no element may come from two of them."""
        mine = [(w.name, w.key, w.offset, w.numel, w.shape, w.view.clone()) for w in self.strategy.windows(once)]
        shares = [None] * self.accelerator.num_processes
        dist.all_gather_object(shares, mine)
        whole, times = {}, {}
        for name, key, offset, numel, shape, values in (window for share in shares for window in share):
            if (name, key) not in whole:
                whole[name, key], times[name, key] = torch.full(shape, torch.nan), torch.zeros(numel)
            whole[name, key].view(-1)[offset : offset + len(values)] = values
            times[name, key][offset : offset + len(values)] += 1
        for (name, key), count in times.items():
            if count.min() < 1 or (once and count.max() > 1):
                self.problems.append(f"{key} of {name}: elements come {count.tolist()} times, once={once}")
        return whole

    def write(self) -> dict[tuple[str, str], Tensor]:
        """Write other values through the windows, and to the plain model too; return them."""
        written = {}
        for (name, key), value in self.reassembled(False).items():
            if key != "step":
                written[name, key] = value.abs() * 1.5 + torch.linspace(0.01, 0.02, value.numel()).view(value.shape)
        for window in self.strategy.windows():
            if window.key != "step":
                new = written[window.name, window.key].view(-1)
                window.view.copy_(new[window.offset : window.offset + len(window.view)])
        self.strategy.refresh()
        for (name, key), value in written.items():
            self._expected(name, key).copy_(value)
        return written

    def _expected(self, name: str, key: str) -> Tensor:
        parameter = self.plain.get_parameter(name)
        return parameter.data if key == "param" else self.plain_optimizer.state[parameter][key]

    def _asked_of_deepspeed(self, name: str, key: str) -> Tensor | None:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if not uses_deepspeed() or key == "step":
            return None
        parameter = self.strategy.unwrapped().get_parameter(name)
        if key == "param":
            return safe_get_full_fp32_param(parameter)
        return safe_get_full_optimizer_state(parameter, key) if self.asks_moments else None

    def _compare(self, what: str, ours: Tensor, theirs: Tensor, rtol: float = 0, atol: float = 0) -> None:
        self.compared += 1
        ours, theirs = ours.detach().float(), theirs.detach().float()
        if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=rtol, atol=atol):
            self.problems.append(f"{what}: {ours.tolist()} and {theirs.tolist()}")


def main(argv: list[str], run: object) -> None:
    """Train, look, write, look, train on from that, look, write, look."""
    folder, groups, precision = argv
    rank = Rank(int(groups), precision)
    for step in (1, 2):
        rank.train(step)
    rank.check("after two steps")
    rank.check("after writing", rank.write())
    rank.train(3)
    rank.check("after a step from what was written")
    rank.check("after writing again", rank.write())
    rank.check_the_model()
    found = {"compared": rank.compared, "problems": rank.problems}
    Path(folder, f"rank-{rank.accelerator.process_index}.json").write_text(json.dumps(found))
