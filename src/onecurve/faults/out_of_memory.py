"""Out-of-memory messages: the requested and the free memory, and the three settings that would help most."""

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator

from onecurve.config import Recipe
from onecurve.machine import memory
from onecurve.machine.accelerator import accelerator_of
from onecurve.machine.distributed import computes_natively, uses_deepspeed
from onecurve.machine.memory import spelt
from onecurve.planning.disk_forecast import moments_per_parameter

_REMEDIES_TOLD = 3
_LITTLE = 2**31
"""Bytes of a GPU that are no reason to look at other processes: CUDA, its libraries and a display take as much."""


@dataclass(frozen=True)
class MemoryUse:
    """Memory that training takes on one rank, in bytes."""

    parameters: int
    gradients: int
    moments: int
    activations: int
    """Of one forward and backward pass: memory beyond the other fields and beyond that before the first step."""


class OutOfMemory:
    """Turns an out-of-memory error into a message; created before the first step.

    Args:
        recipe: The run.
        model: As it was loaded.
        accelerator: The ranks, the device, and DeepSpeed's config.
    """

    def __init__(self, recipe: Recipe, model: Any, accelerator: Accelerator) -> None:
        self.recipe, self.model, self.accelerator = recipe, model, accelerator
        self.device = accelerator.device
        told = accelerator.state.deepspeed_plugin.deepspeed_config if uses_deepspeed() else {}
        zero = told.get("zero_optimization", {})
        self.stage, self.offloads = zero.get("stage", 0), "offload_param" in zero
        self.moments = moments_per_parameter(recipe.optim)
        self.on_accelerator = accelerator_of(self.device) is not None
        self.moves = self.on_accelerator and next(model.parameters()).device != self.device
        """Whether the parameters are still to come to the device, and are not part of `before`."""
        self.before = memory.used(self.device)

    def __call__(self, error: BaseException) -> str:
        """Return the message; empty for any other error."""
        if not memory.ran_out(error):
            return ""
        if memory.ran_out_of_pinned(error, self.device):
            return self._of_pinned()
        asked = memory.asked(error)
        held = self._held(asked)
        found = sorted(self._remedies(held), key=lambda remedy: -remedy[0])[:_REMEDIES_TOLD]
        told = "; ".join(f"{setting} (about {spelt(saved)} less)" for saved, setting in found if saved > 0)
        instead = ", in place of micro_batch_tokens," if self.recipe.train.micro_batch_tokens else ""
        return (
            f"out of memory on rank {self.accelerator.process_index} ({self.device}): "
            f"{spelt(asked) if asked else 'more'} was requested, {self._free(error)}. Training takes "
            f"parameters {spelt(held.parameters)}, gradients {spelt(held.gradients)}, optimizer {spelt(held.moments)}, "
            f"activations about {spelt(held.activations)}. What would help most: {told}. "
            f"train.micro_batch_size auto{instead} finds the largest that fits, with the same global batch and curve."
        )

    def _free(self, error: BaseException) -> str:
        there = spelt(memory.total(self.device))
        if left := memory.left(error):
            others = memory.held_by_others(error)
            told = f" (other processes had {spelt(others)}: nvidia-smi names them)" if others > _LITTLE else ""
            return f"{spelt(left)} of {there} was free{told}"
        return f"{spelt(memory.free(self.device))} of {there} is free after the failure"

    def _of_pinned(self) -> str:
        """Explain what uses page-locked memory in this run, and that settings for GPU memory do not help."""
        host = torch.device("cpu")
        held = self._held(0)
        uses = [f"the copy that a checkpoint is written from (up to {spelt(held.parameters + held.moments)})"]
        remedies = [
            "more memory for the job (Slurm's --mem, the container's limit, ulimit -l)",
            "fewer ranks per machine",
        ]
        if self.recipe.train.activations == "offload":
            uses.append("offloaded activations")
            remedies.append("train.activations recompute")
        if self.offloads:
            uses.append("state offloaded by DeepSpeed")
            remedies.append("launching with accelerate_configs/zero3.yaml")
        return (
            f"out of page-locked host memory on rank {self.accelerator.process_index} ({self.device}): "
            f"{spelt(memory.free(host))} of this machine's {spelt(memory.total(host))} is available, and of the GPU's "
            f"memory {spelt(memory.free(self.device))} is free, so a smaller micro-batch does not help. Page-locked "
            f"memory holds micro-batches on their way to the GPU, {', '.join(uses)}. What would help: "
            f"{'; '.join(remedies)}."
        )

    def _held(self, asked: int) -> MemoryUse:
        parameters = list(self.model.parameters())
        share = self.accelerator.num_processes
        whole = sum(_count(p) * p.element_size() for p in parameters)
        trained = sum(_count(p) * p.element_size() for p in parameters if p.requires_grad)
        gradients = trained // (share if self.stage >= 2 else 1)
        moments = int(trained * self.moments) // (share if self.stage >= 1 else 1)
        own = whole // (share if self.stage == 3 else 1)
        moved = own if self.moves else 0
        rest = memory.peak(self.device) + asked - self.before - moved - gradients - moments
        return MemoryUse(own, gradients, moments, max(0, rest))

    def _remedies(self, held: MemoryUse) -> list[tuple[float, str]]:
        """Return (bytes saved on this rank, setting)."""
        return [*self._of_activations(held), *self._of_state(held)]

    def _of_activations(self, held: MemoryUse) -> list[tuple[float, str]]:
        train = self.recipe.train
        found = []
        if tokens := train.micro_batch_tokens:  # if an example has more than half of them, the next launch reports it
            found.append((held.activations / 2, f"train.micro_batch_tokens {tokens // 2}"))
        if (size := train.examples_a_pass) > 1:
            fewer = max(n for n in range(1, size) if train.global_batch_size % n == 0)
            found.append((held.activations * (1 - fewer / size), f"train.micro_batch_size {fewer}"))
        layers = getattr(self.model.config, "num_hidden_layers", None)
        if train.activations == "keep" and layers:
            # One layer's whole share and each layer's input stay: 2 of 34 values a token and unit. Source: Korthikanti
            # et al., Reducing activation recomputation in large transformer models, 2022, table 2
            kept = min(1.0, 1 / layers + 2 / 34)
            found.append((held.activations * (1 - kept), "train.activations recompute"))
        head = self.model.get_output_embeddings()
        if train.logits == "whole" and head is not None and layers:
            # Of a token: its logits and their gradient, beside half of those 34 bytes as values
            logits, below = 2 * self.model.config.vocab_size, 17 * layers * self.model.config.hidden_size
            found.append((held.activations * logits / (logits + below), "train.logits chunked"))
        if train.mixed_precision == "no" and self.on_accelerator and computes_natively("bf16"):
            found.append((held.activations / 2, "train.mixed_precision bf16"))
        return found

    def _of_state(self, held: MemoryUse) -> list[tuple[float, str]]:
        ranks = self.accelerator.num_processes
        found = []
        others = 1 - 1 / ranks  # what the other ranks could hold for this one
        whole = held.parameters + (held.gradients if self.stage < 2 else 0) + (held.moments if self.stage < 1 else 0)
        if self.stage < 3 and ranks > 1:
            found.append((whole * others, "launching with accelerate_configs/zero3.yaml"))
        if self.on_accelerator and not self.offloads:
            state = held.parameters + held.gradients + held.moments
            found.append((state, "launching with accelerate_configs/zero3_offload.yaml"))
        if self.recipe.peft is None:
            found.append((held.gradients + held.moments, "peft.method lora, which changes the curve"))
        return found


def _count(parameter: Any) -> int:
    return getattr(parameter, "ds_numel", None) or parameter.numel()
