"""Measures a matrix product on each rank and an all-reduce, and finds slow ranks."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from statistics import median
from time import perf_counter

import torch
import torch.distributed as dist

from onecurve.doctor.devices import kind_of_accelerator, own_accelerator_index, own_device
from onecurve.doctor.findings import Finding, Patient
from onecurve.doctor.world import World

_SIZE, _SIZE_ON_CPU = 8192, 512
_NUMBERS, _NUMBERS_ON_CPU = 1 << 26, 1 << 20
"""Float32 values that are summed over the ranks."""
_ROUNDS = 5
_SLOW = 1.5
"""Times the median."""


def check_speed(patient: Patient) -> Iterator[Finding]:
    """Time a matrix product on every rank and a sum over all of them; name the slow ranks."""
    world = patient.world
    kind, own = kind_of_accelerator(), own_accelerator_index()
    if own is not None:
        torch.accelerator.set_device_index(own)  # else all ranks of a machine would use its first, which NCCL refuses
    device, size = (kind, _SIZE) if kind else ("cpu", _SIZE_ON_CPU)
    matrix = torch.randn(size, size, device=device)
    seconds = _best(lambda: matrix @ matrix, device)
    taken = [seconds] if world.missing else world.gather(seconds)
    if world.rank == 0:
        slowest, fastest = (f"{2 * size**3 / each / 1e9:,.0f}" for each in (max(taken), min(taken)))
        rate = fastest if slowest == fastest else f"{slowest} to {fastest}"
        yield Finding("matrix product", f"{size} x {size} in float32 on {device}: {rate} GFLOP/s a rank")
    if world.missing or world.asked == 1:
        return
    yield from slow_ones(world, "matrix product", taken)
    owned = world.gather(own_device())
    # NCCL takes one rank a GPU; where two share one, `check_devices` has said so
    yield from _sum_up(world, kind if all(owned) and len(set(owned)) == len(owned) else "cpu")


def slow_ones(world: World, what: str, seconds: list[float]) -> Iterator[Finding]:
    """Name, on rank 0, the ranks that take much longer than the median of all."""
    usual = median(seconds) if len(seconds) > 2 else min(seconds)
    slow = [rank for rank, taken in enumerate(seconds) if taken > _SLOW * usual]
    if slow and world.rank == 0:
        told = ", ".join(f"rank {rank} on {world.hosts[rank]} ({seconds[rank] / usual:.1f} times)" for rank in slow)
        yield Finding(
            "slow ranks",
            f"{what}: {told}",
            "warning",
            "All ranks wait for the slowest: look for other processes there, its clock rate and its cooling.",
        )


def _sum_up(world: World, device: str) -> Iterator[Finding]:
    values = torch.ones(_NUMBERS_ON_CPU if device == "cpu" else _NUMBERS, device=device)
    backend = dist.get_default_backend_for_device(device)
    try:
        group = dist.new_group(backend=backend, timeout=timedelta(minutes=2))
        seconds = _best(lambda: dist.all_reduce(values, group=group), device)
    except RuntimeError as error:
        told = f"{backend}: {str(error).strip().splitlines()[0]}"
        yield Finding("sum over the ranks", told, "failure", "Set NCCL_DEBUG=INFO and look at the interfaces it names.")
        return
    moved = values.numel() * 4 * 2 * (world.asked - 1) / world.asked  # a ring's traffic of one rank, in bytes
    if world.rank == 0:
        told = f"{values.numel() * 4 / 1e6:,.0f} MB over {backend}: {moved / seconds / 1e9:.2f} GB/s a rank"
        yield Finding("sum over the ranks", told)


def _best(work: Callable[[], object], device: str) -> float:
    """Return the least seconds of several rounds, after one that does not count."""
    taken = []
    for _ in range(_ROUNDS + 1):
        started = perf_counter()
        work()
        if device != "cpu":
            torch.accelerator.synchronize()
        taken.append(perf_counter() - started)
    return min(taken[1:])
