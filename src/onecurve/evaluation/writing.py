"""Has the model write a text for each row of a split: each once at any world size, the same whatever the batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import StoppingCriteriaList

from onecurve.config import Recipe
from onecurve.data.loader import Loader
from onecurve.data.prompts import Prompt
from onecurve.model.attention_kernels import fastest_attention
from onecurve.model.generation import settle_generation, step_by_step
from onecurve.model.prompt_padding import reads_prompt_padding, unequal
from onecurve.model.sampling import sampling
from onecurve.model.text_batches import Beats, plan_texts
from onecurve.ranks.heartbeat import beat
from onecurve.seeds import stream_key
from onecurve.strategies.base import Strategy
from onecurve.tasks.base import Generates, RollsOut, Writes


def settle_prompts(strategy: Strategy, loaders: Mapping[str, Loader]) -> None:
    """Find out, once before training, whether prompts may be padded; `prompts_apart` of the model says so if not.

    Their texts would depend on what else is in a pass. Prompts of one length have no padding.
    """
    for loader in (one for each in loaders.values() for one in each.sets or (each,)):
        task, accelerator, split = loader.task, loader.accelerator, loader.split
        rolls_out = isinstance(task, RollsOut)  # whose examples are prompts
        pair = unequal(
            list(split.examples.lengths[:].tolist()) if rolls_out else [prompt.length for prompt in split.prompts]
        )
        if pair is None:
            continue
        model: Any = strategy.unwrapped()
        assert isinstance(task, Generates)
        settle_generation(model, task, loader.reading.tokenizer)
        prompts = split.take(pair) if rolls_out else [split.prompts[place].example for place in pair]
        strategy.model.eval()
        with torch.no_grad(), fastest_attention(accelerator.device), step_by_step(model), strategy.generating():
            found = torch.tensor(
                [reads_prompt_padding(model, task, prompts, loader.reading)], device=accelerator.device
            )
        # Ranks must not part: under ZeRO-3 they generate equally often
        model.prompts_apart = bool(accelerator.gather(found).any())
        return


def write_texts(strategy: Strategy, recipe: Recipe, loader: Loader) -> list[str]:
    """Return the text that the model writes for each of a split's prompts, in their order, on every rank.

    Every rank generates equally often, as ZeRO-3 needs; what only keeps it in step with the others is thrown away.

    Args:
        strategy: Its model writes, its weights as they stand.
        recipe: Says how many prompts a pass has, and seeds what is drawn.
        loader: Of the split.
    """
    task, prompts, accelerator = loader.task, loader.split.prompts, loader.accelerator
    assert isinstance(task, Writes) and task.generation is not None
    model: Any = strategy.unwrapped()
    settle_generation(model, task, loader.reading.tokenizer)
    lengths, new = [prompt.length for prompt in prompts], task.generation["max_new_tokens"]
    step = plan_texts(lengths, new, recipe, getattr(model, "prompts_apart", False))
    strategy.model.eval()
    pairs: list[tuple[int, str]] = []
    with torch.no_grad(), fastest_attention(accelerator.device), step_by_step(model), strategy.generating():
        for _, numbers, counts in step.of_rank(accelerator.process_index, accelerator.num_processes):
            beat("generation")
            batch = [prompts[number] for number in numbers]
            options = _options(task, batch, recipe.seed, loader.split.name)
            texts = task.generate(model, [prompt.example for prompt in batch], loader.reading, **options)
            pairs += zip(numbers.tolist(), texts, strict=True) if counts else ()
    beat("evaluation")
    found = dict(gather_object(pairs))
    assert len(found) == len(prompts), (len(found), len(prompts))
    return [found[number] for number in range(len(prompts))]


def _options(task: Writes, batch: Sequence[Prompt], seed: int, split: str) -> dict[str, Any]:
    options = {**(task.generation or {}), "stopping_criteria": StoppingCriteriaList([Beats()])}
    if not options["do_sample"]:
        return options
    return sampling(options, [stream_key(seed, "text", split, prompt.row) for prompt in batch])


def completions_of(loader: Loader, number: int) -> list[dict[str, Any]]:
    """Return the first completions of a step with what the model read, and their rewards.

    Args:
        loader: Of a completed step.
        number: How many.
    """
    tokenizer, rows = loader.reading.tokenizer, loader.split.rows
    return [
        {
            "row": int(rows[place]),
            "prompt": tokenizer.decode(example["input_ids"]),
            "text": tokenizer.decode(example["completion"], skip_special_tokens=True),
            "reward": example["reward"],
        }
        for place, example in enumerate(loader.split.take(range(min(number, len(loader.split)))))
    ]


def samples_of(loader: Loader, texts: Sequence[str], number: int) -> list[dict[str, Any]]:
    """Return the first texts with what the model read, special tokens included, and the reference."""
    tokenizer = loader.reading.tokenizer
    return [
        {
            "row": prompt.row,
            "prompt": tokenizer.decode(prompt.example["input_ids"]),
            "text": text,
            "reference": prompt.reference,
        }
        for prompt, text in list(zip(loader.split.prompts, texts, strict=True))[:number]
    ]
