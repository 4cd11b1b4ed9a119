"""Sets the stop tokens of `generate`: the token that the model learnt to end an answer with."""

from pathlib import Path
from typing import Any

from onecurve.tasks.base import Generates, Task


def stop_where_answers_end(model: Any, task: Task, tokenizer: Any) -> None:
    """Have `generate` stop at the token that ends an answer, besides those that it stops at already.

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


def read_generation_config(base: Any, adapter: Path) -> None:
    """Give a base model the generation settings that lie beside an adapter, which PEFT does not read."""
    from transformers import GenerationConfig

    if (adapter / "generation_config.json").is_file():
        base.generation_config = GenerationConfig.from_pretrained(str(adapter))
