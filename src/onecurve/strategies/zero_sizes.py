"""ZeRO's sizes, derived from the model and the memory; docs/zero.md has the reasons and measurements."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

BUCKET = 50_000_000
"""Elements that are reduced at a time at most: 200 MB of float32 gradients."""
PERSISTENT_SHARE = 0.01
"""Of all elements: so much may the smallest parameters make up that every rank keeps whole."""
ADAPTER_SHARE = 0.05
"""Of all elements: what is trained counts as small, all of it, up to here."""


@dataclass(frozen=True)
class Size:
    """A parameter as far as these rules look at it."""

    numel: int
    trained: bool
    block: str
    """The repeated layer it lies in, as `model.layers.7`; empty outside of them."""


def sizes_of(named_parameters: Iterable[tuple[str, Any]]) -> list[Size]:
    """Describe parameters, whole or already shared out by ZeRO-3, in the model's order."""
    return [Size(int(getattr(p, "ds_numel", p.numel())), p.requires_grad, _block(name)) for name, p in named_parameters]


def _block(name: str) -> str:
    parts = name.split(".")
    numbered = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return "" if numbered is None else ".".join(parts[: numbered + 1])


def derive(sizes: list[Size], live: int, on_gpu: bool, passes: int = 2) -> dict[str, Any]:
    """Return the settings of DeepSpeed's `zero_optimization` for a model. All sizes are counted in elements.

    Args:
        sizes: The model's parameters.
        live: Elements for which each rank has memory beside its share (ZeRO-3).
        on_gpu: Whether communication can run beside computation.
        passes: How often a pass goes through the layers: forward, backward, and recomputation where there is one.
    """
    total, trained = sum(s.numel for s in sizes), sum(s.numel for s in sizes if s.trained)
    whole = set(kept_whole(sizes, live, threshold := persistence_threshold(sizes)))
    shared = sum(s.numel for i, s in enumerate(sizes) if i not in whole and s.numel > threshold)
    left = max(0, live - sum(sizes[i].numel for i in whole))
    return {
        "reduce_bucket_size": max(1, min(trained, BUCKET)),
        "overlap_comm": on_gpu,
        "contiguous_gradients": True,
        "stage3_param_persistence_threshold": threshold,
        "stage3_prefetch_bucket_size": largest_block(sizes),
        "stage3_max_live_parameters": live,
        # Between its two uses in a pass a parameter sees, at most, the whole model go by in each direction
        "stage3_max_reuse_distance": int(passes * total * min(1.0, left / max(1, shared))),
    }


def persistence_threshold(sizes: list[Size]) -> int:
    """Return up to which size parameters are kept whole: vectors, and what an adapter trains.

    A gather of so few elements costs its latency and no memory worth naming is saved.
    """
    total, trained = sum(s.numel for s in sizes), [s.numel for s in sizes if s.trained]
    threshold, together = 0, 0
    for numel in sorted({s.numel for s in sizes}):
        together += sum(s.numel for s in sizes if s.numel == numel)
        if together > PERSISTENT_SHARE * total:
            break
        threshold = numel
    if sum(trained) <= ADAPTER_SHARE * total:
        threshold = max([threshold, *trained])
    return threshold


def kept_whole(sizes: list[Size], live: int, threshold: int) -> list[int]:
    """Choose the frozen parameters that ranks gather once and keep: in the model's order, as far as `live` goes."""
    chosen: list[int] = []
    for i, size in enumerate(sizes):
        if not size.trained and (size.numel <= threshold or size.numel <= live):
            chosen.append(i)
            live -= size.numel
    return chosen


def largest_block(sizes: list[Size]) -> int:
    """Return the elements of the largest repeated layer: what is gathered ahead while the layer before it computes."""
    blocks: dict[str, int] = {}
    for size in sizes:
        if size.block:
            blocks[size.block] = blocks.get(size.block, 0) + size.numel
    return max(blocks.values(), default=sum(s.numel for s in sizes))


def fill(config: dict[str, Any], derived: dict[str, Any]) -> None:
    """Write into a `zero_optimization` section what it leaves absent or "auto"; a value of the user's stays."""
    for key, value in derived.items():
        names = {key, key.removeprefix("stage3_")}  # DeepSpeed knows some under both
        if all(config.get(name, "auto") == "auto" for name in names):
            config[key] = value
