"""Has the model answer prompts: each completion drawn by a key of its own, the same whatever stands beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from transformers import LogitsProcessorList, StoppingCriteriaList

from onecurve.config import Recipe
from onecurve.content.completions import Completion
from onecurve.data.loader import Loader
from onecurve.model.attention_kernels import fastest_attention
from onecurve.model.generation import settle_generation, step_by_step
from onecurve.model.sampling import Observed, sampling
from onecurve.model.text_batches import Beats, plan_texts
from onecurve.ranks.heartbeat import beat
from onecurve.strategies.base import Strategy
from onecurve.tasks.base import Example, Generates, RollsOut

_AS_THE_MODEL_IS: dict[str, Any] = {
    "num_beams": 1,
    "return_dict_in_generate": False,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    **dict.fromkeys(
        (
            "min_new_tokens bad_words_ids suppress_tokens begin_suppress_tokens forced_bos_token_id "
            "forced_eos_token_id sequence_bias exponential_decay_length_penalty guidance_scale stop_strings max_time "
            "prompt_lookup_num_tokens watermarking_config"
        ).split()
    ),
}
"""What a model's generation_config.json must not change: completions are of the distribution that is learnt."""


def draw(
    strategy: Strategy, recipe: Recipe, loader: Loader, prompts: Sequence[Example], keys: Sequence[int], training: bool
) -> list[Completion]:
    """Return the completion that the model draws for each prompt, in their order, on every rank.

    Every rank generates equally often, as ZeRO-3 needs; what only keeps it in step with the others is thrown away.

    Args:
        strategy: Its model writes, its weights as they stand.
        recipe: Says how many prompts a pass has.
        loader: Of the split that the prompts are of.
        prompts: One for each completion.
        keys: Of each completion.
        training: Else how evaluation draws.
    """
    task, accelerator, tokenizer = loader.task, loader.accelerator, loader.reading.tokenizer
    assert isinstance(task, RollsOut) and isinstance(task, Generates)
    model: Any = strategy.unwrapped()
    ends = end_tokens(model, task, tokenizer)
    options = {**_AS_THE_MODEL_IS, **task.drawing(training)}
    lengths = [len(prompt["input_ids"]) for prompt in prompts]
    step = plan_texts(lengths, options["max_new_tokens"], recipe, getattr(model, "prompts_apart", False))
    strategy.model.eval()
    found: list[tuple[int, Completion]] = []
    with torch.no_grad(), fastest_attention(accelerator.device), step_by_step(model), strategy.generating():
        for _, numbers, counts in step.of_rank(accelerator.process_index, accelerator.num_processes):
            beat("generation")
            observed = Observed()
            asked = _asked(options, [keys[number] for number in numbers], observed)
            written = task.write_on(model, [prompts[number] for number in numbers], loader.reading, **asked)
            if counts:
                found += zip(numbers.tolist(), _read(written, observed, ends, tokenizer), strict=True)
    beat("generation")
    every = dict(gather_object(found))
    assert len(every) == len(prompts), (len(every), len(prompts))
    return [every[number] for number in range(len(prompts))]


def end_tokens(model: Any, task: Any, tokenizer: Any) -> set[int]:
    """Return the tokens that end a completion, as the saved model will have them."""
    settle_generation(model, task, tokenizer)
    ends = model.generation_config.eos_token_id
    return {ends} if isinstance(ends, int) else set(ends or ())


def _asked(options: Mapping[str, Any], keys: Sequence[int], observed: Observed) -> dict[str, Any]:
    """Return what `generate` is asked for."""
    given = {**options, "stopping_criteria": StoppingCriteriaList([Beats()])}
    if given["do_sample"]:
        return sampling(given, keys, observed)
    del given["temperature"]
    return {**given, "logits_processor": LogitsProcessorList([observed])}


def _read(written: torch.Tensor, observed: Observed, ends: set[int], tokenizer: Any) -> list[Completion]:
    logps, entropies = (of_all.cpu().numpy() for of_all in observed.finish(written))
    completions = []
    for row, ids in enumerate(written.tolist()):
        end = next((place for place, token in enumerate(ids) if token in ends), None)
        size = len(ids) if end is None else end + 1
        completions.append(
            Completion(
                ids[:size],
                as_read(logps[row, :size]),
                float(entropies[row, :size].mean()),
                end is not None,
                tokenizer.decode(ids[:size], skip_special_tokens=True),
            )
        )
    return completions


def as_read(values: np.ndarray) -> list[float]:
    """Return float32 [tokens] as numbers of the shortest text that is read back as the same: half that of others."""
    return [float(str(value)) for value in values]
