"""A rank under ZeRO-3 that tells what it gathers in a step, and whether its gradients are those of plain torch."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from onecurve.machine.distributed import start
from onecurve.strategies.zero import Zero

PASSES, WARM_UP = 2, 3


def build(frozen: bool) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=320, tie_word_embeddings=False, **sizes))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not frozen or "norm" in name)
    return model


def main(argv: list[str], run: Any) -> None:
    what, live, folder = argv[0], int(argv[1]), Path(argv[2])
    accelerator = start([], "unused")
    zero = Zero(accelerator, "fp16" if what == "gradients" else "no", 0.0, 1)
    if live >= 0:
        zero.config["zero_optimization"]["stage3_max_live_parameters"] = live
    model = build(frozen=what == "gathers")
    plain = deepcopy(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.0)
    zero.prepare(model, optimizer, PASSES)
    ids = torch.randint(320, (2, 24), generator=torch.Generator().manual_seed(accelerator.process_index))
    found = gathered(zero, ids) if what == "gathers" else differing(zero, plain, ids)
    (folder / f"rank-{accelerator.process_index}.json").write_text(json.dumps(found))


def step(zero: Any, ids: torch.Tensor) -> None:
    for i in range(PASSES):
        zero.begin_pass(last=i == PASSES - 1)
        with zero.autocast():
            logits = zero.model(input_ids=ids).logits
        zero.backward(logits.float().pow(2).sum())
    zero.update()


def gathered(zero: Any, ids: torch.Tensor) -> dict[str, int]:
    """Count the elements of what is gathered in a step, once ZeRO-3 knows the order of the modules."""
    for _ in range(WARM_UP):
        step(zero, ids)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        step(zero, ids)
    calls = [event for event in seen.events() if event.name == "c10d::_allgather_base_"]
    sizes = {True: 0, False: 0}
    for parameter in zero.unwrapped().parameters():
        sizes[parameter.requires_grad] += parameter.ds_numel
    return {"elements": sum(e.input_shapes[0][0] for e in calls), "trained": sizes[True], "frozen": sizes[False]}


def differing(zero: Any, plain: Any, ids: torch.Tensor) -> dict[str, list[str]]:
    """Name the parameters whose gradient in one backward pass is not, bit for bit, plain torch's."""
    seen: dict[str, torch.Tensor] = {}
    for name, parameter in zero.unwrapped().named_parameters():
        parameter.register_hook(lambda gradient, name=name: seen.update({name: gradient.clone()}))
    zero.begin_pass(last=True)
    zero.backward(zero.model(input_ids=ids).logits.float().pow(2).sum() * 1e-3)
    with torch.autocast("cpu", torch.float16):
        logits = plain(input_ids=ids).logits
    (logits.float().pow(2).sum() * 1e-3 * zero.loss_scale.factor).backward()
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters()}
    return {
        "differing": [name for name, gradient in gradients.items() if not torch.equal(gradient, seen[name])],
        "nonzero": [name for name, gradient in gradients.items() if gradient.any() and gradient.isfinite().all()],
    }
