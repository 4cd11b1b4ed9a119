"""What `generate` of a trained model goes by: where it stops, its language, and how the recipe has it search."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from onecurve.losses.chunked_head import whole_logits
from onecurve.tasks.base import Generates, Task, Writes

_OF_SAMPLING = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
"""What is set where the recipe draws tokens and does not say it: what leaves the model's distribution as it is."""


def settle_generation(model: Any, task: Task, tokenizer: Any) -> None:
    """Have `generate` stop where what was learnt ends, and write as the task's settings say.

    A chat template may end a turn with another token than the tokenizer's end-of-text token. A model that learns the
    one and stops at the other writes on after its answer. What is set here is saved as generation_config.json.

    Args:
        model: A transformers model or a PEFT model around one; one that does not generate is left alone.
        task: What it is trained on.
        tokenizer: Its end token is added too where another one is; its padding token where the model has none.
    """
    settings = getattr(model, "generation_config", None)
    if settings is None or not isinstance(task, Generates):
        return
    if settings.pad_token_id is None:
        settings.pad_token_id = tokenizer.pad_token_id
    given = settings.eos_token_id
    known = given if isinstance(given, list) else [given]
    end = task.end_token(tokenizer)
    if end is not None and end not in known:
        stops = dict.fromkeys([end, *known, tokenizer.eos_token_id])
        settings.eos_token_id = [token for token in stops if token is not None]
    if isinstance(task, Writes):
        settings.update(**task.generation_config(tokenizer), **_searched(task))


def _searched(task: Writes) -> dict[str, Any]:
    """Return what the recipe says of the search; a model's own habit of sampling is left to it."""
    options = dict(task.generation or {})
    if options.get("do_sample"):
        return _OF_SAMPLING | {"num_beams": 1} | options
    options.pop("do_sample", None)
    return options


def read_generation_config(base: Any, adapter: Path) -> None:
    """Give a base model the generation settings that lie beside an adapter, which PEFT does not read."""
    from transformers import GenerationConfig

    if (adapter / "generation_config.json").is_file():
        base.generation_config = GenerationConfig.from_pretrained(str(adapter))


@contextmanager
def step_by_step(model: Any) -> Iterator[None]:
    """Have a model run as `generate` needs it: nothing compiled, packed or chunked."""
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    with ExitStack() as stack:
        stack.enter_context(whole_logits(model))
        if packing := getattr(base, "packing", None):
            stack.enter_context(packing.suspended())
        if getattr(base, "is_compiled", False):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield
