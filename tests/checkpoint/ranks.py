"""Ranks for tests: threads of one process, or real processes that can be killed; and tensors that know their step."""

import multiprocessing
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import torch

from onecurve.checkpoint import Alone, Retention, TensorWindow, Writer, load
from onecurve.errors import TrainingError

# A clean server that has imported torch: children start in milliseconds and inherit no threads
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.checkpoint.ranks"])

LOST = 3
"""Exit code of a rank whose peer was killed."""

SHAPES = {
    "param/a.weight": ((301, 211), torch.float32),
    "param/a.bias": ((7,), torch.float32),
    "exp_avg/a.weight": ((301, 211), torch.float32),
    "best/half": ((1001,), torch.bfloat16),
    "count/step": ((3,), torch.int64),
}


def tensors_at(step: int) -> dict[str, torch.Tensor]:
    """What a run holds after `step`: other values at every step."""
    generator = torch.Generator().manual_seed(step)
    return {name: torch.randn(shape, generator=generator).mul(100).to(dtype) for name, (shape, dtype) in SHAPES.items()}


def pieces_of(tensors: dict[str, torch.Tensor], rank: int = 0, world_size: int = 1) -> list[TensorWindow]:
    """Give a rank its equal share of each tensor."""
    pieces = []
    for name, tensor in tensors.items():
        share = -(-tensor.numel() // world_size)
        start, stop = min(tensor.numel(), rank * share), min(tensor.numel(), (rank + 1) * share)
        pieces.append(TensorWindow(name, tensor.view(-1)[start:stop], start, tensor.numel(), tuple(tensor.shape)))
    return pieces


def empty_tensors() -> dict[str, torch.Tensor]:
    return {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in SHAPES.items()}


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(
        one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8)
    )


class Threads:
    """Implements `Peers` between threads of this process."""

    def __init__(self, world_size: int) -> None:
        self.barrier_, self.values = threading.Barrier(world_size, timeout=30), [None] * world_size
        self.world_size = world_size

    def of(self, rank: int) -> "ThreadPeers":
        return ThreadPeers(self, rank)


class ThreadPeers:
    def __init__(self, shared: Threads, rank: int) -> None:
        self.shared, self.rank, self.world_size = shared, rank, shared.world_size

    def gather(self, value):
        self.shared.values[self.rank] = value
        self.barrier()
        values = list(self.shared.values)
        self.barrier()
        return values

    def broadcast(self, value):
        return self.gather(value)[0]

    def barrier(self):
        self.shared.barrier_.wait()


def on_threads(world_size: int, work) -> list:
    """Call `work(peers)` on that many ranks at once; return what they returned."""
    shared = Threads(world_size)
    with ThreadPoolExecutor(world_size) as pool:
        return [future.result() for future in [pool.submit(work, shared.of(rank)) for rank in range(world_size)]]


class PipePeers:
    """Implements `Peers` between processes: a star around rank 0. A killed peer closes its pipes."""

    def __init__(self, rank: int, world_size: int, pipes: list) -> None:
        self.rank, self.world_size, self.pipes = rank, world_size, pipes

    def gather(self, value):
        try:
            if self.rank:
                self.pipes[0].send(value)
                return self.pipes[0].recv()
            values = [value, *(pipe.recv() for pipe in self.pipes)]
            for pipe in self.pipes:
                pipe.send(values)
        except (EOFError, OSError):
            raise TrainingError("a rank was lost") from None
        return values

    def broadcast(self, value):
        return self.gather(value)[0]

    def barrier(self):
        self.gather(None)


class Processes:
    """Real ranks, each running `work(peers, tell, *arguments)`; `tell` sends the test a message."""

    def __init__(self, world_size: int, work, *arguments) -> None:
        pairs = [CONTEXT.Pipe() for _ in range(world_size - 1)]
        self.news, tell = CONTEXT.Pipe(duplex=False)
        self.all = []
        for rank in range(world_size):
            pipes = [pair[0] for pair in pairs] if rank == 0 else [pairs[rank - 1][1]]
            process = CONTEXT.Process(target=_work, args=(work, rank, world_size, pipes, tell, arguments), daemon=True)
            process.start()
            self.all.append(process)
        for end in [*(end for pair in pairs for end in pair), tell]:
            end.close()  # a reader sees the end of a pipe only when nobody else holds it

    def kill(self) -> None:
        """SIGKILL all of them."""
        for process in self.all:
            process.kill()
        self.join()

    def join(self) -> list[int]:
        for process in self.all:
            process.join(30)
        return [process.exitcode for process in self.all]

    def messages(self) -> list:
        """Read what they told until the last of them ended."""
        told = []
        while True:
            try:
                told.append(self.news.recv())
            except EOFError:
                return told


def _work(work, rank, world_size, pipes, tell, arguments) -> None:
    torch.set_num_threads(1)
    try:
        work(PipePeers(rank, world_size, pipes), tell.send, *arguments)
    except TrainingError:
        sys.exit(LOST)


def save_in_a_loop(peers: PipePeers, tell, root: Path, first: int, stop_at: tuple[str, int] | None) -> None:
    """Save step after step, each fourth one twice; hang at a phase of a rank, having said so, and wait for the kill."""

    def phase(name: str) -> None:
        if (name, peers.rank) == stop_at and step > first + 2:
            tell(("at", step, name))
            time.sleep(1000)

    writer = Writer(root, peers, Retention(2), "stop", phase)
    for step in count(first):
        for _ in range(2 if step % 4 == 0 else 1):
            writer.save(step, pieces_of(tensors_at(step), peers.rank, peers.world_size), {"step": step})
            writer.wait()
        if peers.rank == 0:
            tell(("saved", step))


def load_all(folder: Path, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    load(folder, pieces_of(tensors), Alone())
    return tensors
