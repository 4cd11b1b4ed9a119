"""How deep below its head each of a model's parameters lies, by the order in which a pass calls its blocks."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from onecurve.config import RegularizationSection
from onecurve.errors import ConfigError


@dataclass(frozen=True)
class Depths:
    """A model's depths, counted from the head down."""

    of: dict[str, int]
    """Parameter -> 0 for the head, 1 for the top block, and so on to the embeddings, which lie below the last block."""
    num_blocks: int

    def is_embedding(self, name: str) -> bool:
        """Whether a parameter lies below all blocks."""
        return self.of[name] > self.num_blocks

    def trained(self, model: nn.Module) -> list[int]:
        """Return the depths of the parameters that are trained, the highest first."""
        return sorted({self.of[name] for name, parameter in model.named_parameters() if parameter.requires_grad})

    def describe(self, of_depths: Mapping[int, str]) -> str:
        """Say what depths have."""
        return ", ".join(f"{self._name(depth)} {told}" for depth, told in of_depths.items())

    def _name(self, depth: int) -> str:
        if depth == 0:
            return "head"
        return "embeddings" if depth > self.num_blocks else f"block {self.num_blocks - depth + 1}"


def find_depths(model: Any, called: Iterable[nn.Module], key: str) -> Depths:
    """Find the depth of each parameter.

    Blocks are numbered in the order in which they are first called, so an encoder lies below its decoder, and the
    stages of a model of images below one another. What is called before the first block is embeddings, what is called
    after the last is head, and what is called in between lies with the block before it, as an encoder's last
    normalisation does. A parameter that two places share counts where it is first named: tied embeddings are
    embeddings.

    Args:
        model: With or without an adapter.
        called: Its modules in the order of their first calls.
        key: The setting that asks for it, for the message.

    Raises:
        ConfigError: The blocks cannot be told from the rest, or parameters act on several of them at once.
    """
    if any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values()):
        raise ConfigError("virtual tokens act on all blocks, so they have no depth.", where=key, fix="Remove it.")
    order = {module: number for number, module in enumerate(called)}
    stacks = list(_stacks(model))
    blocks = sorted((block for stack in stacks for block in stack if block in order), key=order.__getitem__)
    if len(blocks) < 2:
        raise ConfigError(
            f"no blocks can be told apart in this {type(model).__name__}: it has no ModuleList of several blocks, each "
            "with weights of its own.",
            where=key,
            fix="Remove it.",
        )
    inside = {module: number for number, block in enumerate(blocks, 1) for module in block.modules()}
    depths = {}
    for name, _ in model.named_parameters():
        owner = _owner(model, name, order)
        level = inside.get(owner)
        if level is None:
            begun = sum(order[block] < order[owner] for block in blocks)
            level = begun if begun < len(blocks) else len(blocks) + 1
        depths[name] = len(blocks) + 1 - level
    return Depths(depths, len(blocks))


def _stacks(model: Any) -> Iterator[list[nn.Module]]:
    """Yield the lists of blocks that lie in no other block."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    base: Any = model.get_base_model() if hasattr(model, "peft_config") else model
    named = set(getattr(base, "_no_split_modules", None) or ())
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    known = [
        [*blocks]
        for blocks in lists
        if all(isinstance(b, GradientCheckpointingLayer) or type(b).__name__ in named for b in blocks)
    ]
    total = sum(1 for _ in model.parameters())
    # Where transformers does not say: lists of like modules that hold most of the model
    alike = [[*blocks] for blocks in lists if len({type(b) for b in blocks}) == 1 and len(blocks) > 1]
    most = [blocks for blocks in alike if 2 * sum(1 for b in blocks for _ in b.parameters()) > total]
    found = known or most
    nested = {module for blocks in found for b in blocks for module in b.modules() if module is not b}
    yield from (blocks for blocks in found if not nested.intersection(blocks))


def _owner(model: Any, name: str, order: dict[nn.Module, int]) -> nn.Module:
    """Return the innermost module around a parameter that was called."""
    parts = name.split(".")[:-1]
    for length in range(len(parts), 0, -1):
        if (module := model.get_submodule(".".join(parts[:length]))) in order:
            return module
    return model


def settle_rates(model: Any, section: RegularizationSection, called: Iterable[nn.Module]) -> str:
    """Tell a model, in `learning_rates` and `first_steps`, how fast and from which step on its parameters are trained.

    Sources: Howard & Ruder, Universal language model fine-tuning, ACL 2018, sections 3.2 (discriminative fine-tuning)
    and 3.3 (gradual unfreezing, from the head down); Clark et al., ELECTRA, ICLR 2020, appendix B, whose order from
    embeddings to head this is. A depth without trained parameters has no turn to thaw: of LoRA on a language model, the
    top block is first.

    Returns:
        Both for the summary, a line each; empty where all parameters are trained alike.
    """
    told = []
    if section.layer_decay is not None:
        depths = find_depths(model, called, "regularization.layer_decay")
        share = [section.layer_decay**depth for depth in range(depths.num_blocks + 2)]
        model.learning_rates = {name: share[depth] for name, depth in depths.of.items()}
        rates = {depth: f"{share[depth]:.3g}" for depth in depths.trained(model)}
        told.append(f"rates     {depths.describe(rates)} times optim.lr")
    if section.unfreeze_every is not None:
        depths = find_depths(model, called, "regularization.unfreeze_every")
        first = {depth: 1 + turn * section.unfreeze_every for turn, depth in enumerate(depths.trained(model))}
        model.first_steps = {name: first[depth] for name, depth in depths.of.items() if depth in first}
        told.append(f"thaws     by step: {depths.describe({depth: str(step) for depth, step in first.items()})}")
    return "\n".join(told)
