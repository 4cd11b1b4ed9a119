"""What torch's attention does here, a probe a process: `python benchmarks/gpu_probes.py new_lengths cuda OUT`.

Writes one JSON object of numbers to OUT. On a CPU sizes are tiny and only torch's own kernel is asked, which shows that
the probes run and nothing else.
"""

import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from onecurve.model.attention_kernels import fastest_attention
from onecurve.model.packed_attention import Documents, _kernel, attend

Numbers = dict[str, Any]
Context = Callable[[], AbstractContextManager[Any]]
PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "datasets", "peft", "evaluate", "bitsandbytes")
PACKAGES += ("torchao", "numpy", "pytest", "triton")
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


def versions(device: torch.device) -> Numbers:
    """Return the versions of what computes, and the device."""
    found: Numbers = {"python": platform.python_version(), "device": str(device), "cuda": torch.version.cuda}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    found["cudnn"] = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    found["variable-length kernel"] = kernel = _kernel() is not None
    found["it takes grouped heads"] = kernel and _kernel().groups_heads  # type: ignore[union-attr]
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"gpu": properties.name, "capability": f"{properties.major}.{properties.minor}"}
        found |= {"gpus": torch.cuda.device_count(), "gpu memory": properties.total_memory}
    return found


def masked_gradients(device: torch.device) -> Numbers:
    """Return how far gradients under a padding mask are from float64's, by kernel and length.

    Rows whose log-sum-exp lies below -88.7 and lengths of 64 modulo 128 are where cuDNN's backward pass gave NaN.
    """
    return {f"length {length}": _masked(device, length) for length in (192, 256, 320)}


def _masked(device: torch.device, length: int) -> Numbers:
    heads, size = (8, 64) if device.type == "cuda" else (2, 8)
    query, key, value = _inputs(device, 2, heads, length, size)
    query, key = 1 + query / 10, -(200 * size**-0.5 + 2 * key)  # scores around -200
    mask = torch.ones(2, 1, 1, length, dtype=torch.bool, device=device)
    mask[1, ..., length // 2 :] = False
    exact = _gradients([tensor.double() for tensor in (query, key, value)], mask, sdpa_kernel(SDPBackend.MATH))
    scores = query[0, 0].double() @ key[0, 0].double().T * size**-0.5
    found: Numbers = {"highest log-sum-exp": float(scores.logsumexp(-1).max())}
    for name, context in _contexts(device, {"math", "efficient", "cudnn"}):
        found[name] = _tried(partial(_apart, [query, key, value], mask, context, exact))
    return found


def new_lengths(device: torch.device) -> Numbers:
    """Return the milliseconds of causal attention on 20 lengths never seen before and then seen, by kernel."""
    contexts = _contexts(device, {"flash", "efficient", "cudnn"})
    return {name: _tried(partial(_lengths, device, context)) for name, context in contexts}


def _lengths(device: torch.device, context: Context) -> Numbers:
    lengths = range(1001, 1021) if device.type == "cuda" else range(31, 34)
    heads, size = (16, 64) if device.type == "cuda" else (2, 8)
    passes: dict[str, list[float]] = {}
    for round_name in ("new", "seen"):
        for length in lengths:
            inputs = [tensor.requires_grad_() for tensor in _inputs(device, 1, heads, length, size)]
            with context():
                output, forward = _timed(device, partial(scaled_dot_product_attention, *inputs, is_causal=True))
                _, backward = _timed(device, output.float().sum().backward)
            passes.setdefault(f"{round_name} forward", []).append(forward)
            passes.setdefault(f"{round_name} backward", []).append(backward)
    medians = {key: sorted(times)[len(times) // 2] for key, times in passes.items()}
    return medians | {f"{key}, slowest": max(times) for key, times in passes.items()}


def packed_rows(device: torch.device) -> Numbers:
    """Return the milliseconds of a packed row's attention by the variable-length kernel and document by document.

    And how far the kernel's gradients are from those of each document alone in float32.
    """
    heads, groups, size, scale = (32, 8, 64, 1) if device.type == "cuda" else (4, 2, 8, 16)
    sizes = [max(1, n // scale) for n in (37, 512, 1, 300, 128, 1024, 64, 2030)]
    boundaries = torch.tensor([0, *sizes], device=device).cumsum(0).int()
    documents = Documents(sizes, boundaries)
    drawn = [*_inputs(device, 1, heads, sum(sizes), size)[:1], *_inputs(device, 1, groups, sum(sizes), size)[1:]]
    exact = _packed(documents, [t.float() for t in drawn], dropout=0.0)
    found: Numbers = {"documents": len(sizes), "tokens": sum(sizes), "kernel": _kernel() is not None}
    for name, dropout in (("at once", 0.0), ("one by one", 1e-9)):  # dropout is what the kernel does not take
        for round_name in ("first", "again"):
            ours, taken = _timed(device, partial(_packed, documents, drawn, dropout))
            found[f"{name}, {round_name}, milliseconds"] = taken
        found[f"{name}, gradients apart"] = max(_relative(a, b) for a, b in zip(ours, exact, strict=True))
    return found


def _packed(documents: Documents, drawn: list[Tensor], dropout: float) -> list[Tensor]:
    inputs = [tensor.detach().requires_grad_() for tensor in drawn]
    module = torch.nn.Module()
    with fastest_attention(drawn[0].device):
        output, _ = attend(module, *inputs, None, dropout=dropout, documents=documents)
        output.float().pow(2).sum().backward()
    return [tensor.grad.float() for tensor in inputs if tensor.grad is not None]


def _inputs(device: torch.device, batch: int, heads: int, length: int, size: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    drawn = (torch.randn(batch, heads, length, size, generator=generator) for _ in range(3))
    return [tensor.to(device, torch.bfloat16) for tensor in drawn]


def _contexts(device: torch.device, names: set[str]) -> Iterator[tuple[str, Context]]:
    if device.type == "cuda":
        yield from ((name, partial(sdpa_kernel, kernel)) for name, kernel in KERNELS.items() if name in names)
        yield "as torch chooses", nullcontext
    yield "as onecurve chooses", partial(fastest_attention, device)


def _gradients(inputs: list[Tensor], mask: Tensor, context: AbstractContextManager[Any]) -> list[Tensor]:
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    with context:
        scaled_dot_product_attention(*inputs, attn_mask=mask).float().pow(2).sum().backward()
    return [tensor.grad for tensor in inputs if tensor.grad is not None]


def _apart(inputs: list[Tensor], mask: Tensor, context: Context, exact: list[Tensor]) -> Numbers:
    ours = _gradients(inputs, mask, context())
    names = ("queries", "keys", "values")
    found: Numbers = {"not finite": sum(int((~gradient.isfinite()).sum()) for gradient in ours)}
    return found | {n: _relative(mine, true) for n, mine, true in zip(names, ours, exact, strict=True)}


def _relative(ours: Tensor, exact: Tensor) -> float:
    apart = float((ours.double() - exact.double()).norm() / exact.double().norm().clamp_min(1e-30))
    return apart if apart == apart else -1.0  # JSON has no NaN


def _timed(device: torch.device, work: Callable[[], Any]) -> tuple[Any, float]:
    _wait(device)
    started = time.perf_counter()
    made = work()
    _wait(device)
    return made, 1000 * (time.perf_counter() - started)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _tried(work: Callable[[], Any]) -> Any:
    """Return what work returns, or why it failed: a kernel may not take these inputs."""
    try:
        return work()
    except RuntimeError as error:
        return str(error).strip().splitlines()[0]


PROBES: dict[str, Callable[[torch.device], Numbers]] = {
    probe.__name__: probe for probe in (versions, masked_gradients, new_lengths, packed_rows)
}

if __name__ == "__main__":
    name, kind, out = sys.argv[1:]
    Path(out).write_text(json.dumps(PROBES[name](torch.device(kind, 0 if kind == "cuda" else None))))
