"""What two runs have to do with each other: the same data, the same losses, the same final weights."""

from collections.abc import Iterator

import numpy as np
from safetensors.numpy import load_file

from tests.launching import Finished

TOLERANCE = 1e-6
"""Of a step's loss, relative; its gradient norm may differ by five times that."""


def curve(run: Finished) -> list[tuple[int, str, float, float]]:
    """Step, sample digest, loss and gradient norm of each step, as metrics.jsonl has them."""
    return [(step["step"], step["sample_digest"], step["loss"], step["grad_norm"]) for step in run.events("train")]


def weights(run: Finished) -> dict[str, np.ndarray]:
    folder = run.output_dir / "model"
    name = "adapter_model.safetensors" if (folder / "adapter_config.json").exists() else "model.safetensors"
    return load_file(folder / name)


def largest_differences(ours: Finished, theirs: Finished) -> tuple[float, float]:
    """Of a step's loss and of its gradient norm, relative to ours."""
    pairs = list(zip(curve(ours), curve(theirs), strict=True))
    return tuple(max(_relative(one[place], other[place]) for one, other in pairs) for place in (2, 3))


def partings(ours: Finished, theirs: Finished, exactly: bool = False) -> Iterator[str]:
    """Yield where two runs part by more than float noise, or by a single bit."""
    one, other = curve(ours), curve(theirs)
    if [step[:2] for step in one] != [step[:2] for step in other]:
        yield f"other data or steps: {[step[:2] for step in other]} instead of {[step[:2] for step in one]}"
        return
    loss_limit, norm_limit = (0, 0) if exactly else (TOLERANCE, 5 * TOLERANCE)
    for (step, _, loss, norm), (_, _, their_loss, their_norm) in zip(one, other, strict=True):
        if _relative(loss, their_loss) > loss_limit:
            yield f"step {step}: loss {their_loss} instead of {loss}: {_relative(loss, their_loss):.1e}"
        if _relative(norm, their_norm) > norm_limit:
            yield f"step {step}: gradient norm {their_norm} instead of {norm}: {_relative(norm, their_norm):.1e}"
    # Adam divides by the root of a moment: where a gradient is near zero, noise in it is noise in the update
    room = {"rtol": 0, "atol": 0} if exactly else {"rtol": 1e-4, "atol": 2e-5}
    mine, yours = weights(ours), weights(theirs)
    if mine.keys() != yours.keys():
        yield f"other tensors: {sorted(mine.keys() ^ yours.keys())}"
    for name in mine.keys() & yours.keys():
        if not np.allclose(mine[name], yours[name], **room):
            yield f"final {name}: {np.abs(mine[name] - yours[name]).max():.1e}"


def _relative(one: float, other: float) -> float:
    return abs(other - one) / abs(one)
