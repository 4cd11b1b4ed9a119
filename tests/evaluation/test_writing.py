"""Texts that a model writes in evaluation: the same whatever stands beside them, and whatever training runs with."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from onecurve.config import Recipe, TaskSection
from onecurve.data.checking import Report
from onecurve.data.encoding import Split
from onecurve.data.loader import Loader
from onecurve.data.prompts import Prompt
from onecurve.evaluation import predictions
from onecurve.evaluation.writing import samples_of, settle_prompts, write_texts
from onecurve.losses.chunked_head import chunk_logits
from onecurve.model.activations import keep_activations
from onecurve.model.compilation import compile_layers
from onecurve.model.packing import Packing
from onecurve.strategies.plain import Plain
from onecurve.tasks import load_task
from onecurve.tasks.base import Survey
from tests.readings import ReadingOf

TEXTS = [
    "the quick brown fox",
    "a",
    "we were happy with the film, and they were not.",
    "the dog sleeps",
    "in",
    "the sun",
]
GREEDY = {"max_new_tokens": 10}
BEAMS = {"max_new_tokens": 10, "num_beams": 3}
DRAWN = {"max_new_tokens": 10, "do_sample": True, "top_k": 50, "top_p": 0.9, "temperature": 0.8}


def write(
    task_name: str,
    folder: Path,
    generate: dict[str, Any],
    size: int = 6,
    change: Any = None,
    settled: bool = True,
    **train: Any,
) -> Any:
    """Have a model of random weights, changed, write texts for six rows, so many a pass."""
    from transformers import AutoConfig, AutoTokenizer

    task = load_task(TaskSection(name=task_name, generate=generate))
    reading = ReadingOf(lambda: AutoTokenizer.from_pretrained(folder), 128, AutoConfig.from_pretrained(folder))
    model: Any = task.auto_model().from_pretrained(folder).eval()
    with torch.no_grad():
        for weight in model.parameters():  # upstream starts at 0.02, where every prompt is answered alike
            weight.mul_(4)
    model = (change(model) if change else None) or model
    prompts = []
    for row, text in enumerate(TEXTS):
        asked, reference = task.asked({"source": text, "target": "x", "prompt": text, "response": "x"})
        example = task.prompt(asked, reading)
        prompts.append(Prompt(row, example, task.length(example), reference))
    strategy = Plain(Accelerator(cpu=True), "no", 0.0)
    strategy.prepare(model, torch.optim.SGD(model.parameters()), 1)
    recipe = Recipe.model_validate(
        {
            "output_dir": "x",
            "task": {"name": task_name},
            "model": {"path": str(folder)},
            "data": {"train": "x"},
            "train": {"max_steps": 1, "global_batch_size": 12, "micro_batch_size": size, **train},
        }
    )
    loader = Loader(Split("eval", Report(), None, prompts=prompts), task, reading, strategy.accelerator)  # type: ignore[arg-type]
    if settled:
        settle_prompts(strategy, {"eval": loader})
    return SimpleNamespace(texts=write_texts(strategy, recipe, loader), loader=loader, model=model)


@pytest.fixture(scope="module")
def folders(tiny_llama: Path, tiny_t5: Path) -> dict[str, Path]:
    return {"sft": tiny_llama, "seq2seq_lm": tiny_t5}


@pytest.mark.parametrize("generate", [GREEDY, BEAMS, DRAWN], ids=["greedy", "beams", "drawn"])
@pytest.mark.parametrize("task", ["sft", "seq2seq_lm"])
def test_a_text_does_not_depend_on_its_batch(folders: dict[str, Path], task: str, generate: dict[str, Any]) -> None:
    found = write(task, folders[task], generate)
    together = found.texts
    assert not found.model.prompts_apart, "their positions come from the mask: they need not be kept apart"
    assert len(set(together)) == len(TEXTS)
    assert write(task, folders[task], generate, 1).texts == together
    assert write(task, folders[task], generate, 4).texts == together
    counted = {"micro_batch_size": None, "micro_batch_tokens": 60, "global_batch_size": 12}
    assert write(task, folders[task], generate, **counted).texts == together


def _counting_padding(llama: Any) -> Any:
    """GPT-2 with absolute positions that do not come from the mask, as code that comes with a model may have them."""
    from transformers import GPT2Config, GPT2LMHeadModel

    class CountingPadding(GPT2LMHeadModel):
        def forward(
            self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None, **rest: Any
        ) -> Any:
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, **rest)

    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.1}
    return CountingPadding(GPT2Config(vocab_size=llama.config.vocab_size, **sizes)).eval()


def _recurrent(llama: Any) -> Any:
    """A model that carries padding into its state."""
    from transformers import RwkvConfig, RwkvForCausalLM

    torch.manual_seed(0)
    model = RwkvForCausalLM(RwkvConfig(vocab_size=llama.config.vocab_size, hidden_size=32, num_hidden_layers=2)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
    return model


@pytest.mark.parametrize("change", [_counting_padding, _recurrent])
def test_a_model_that_reads_the_padding_before_a_prompt_is_given_none(tiny_llama: Path, change: Any) -> None:
    alone = write("sft", tiny_llama, GREEDY, 1, change)
    padded = write("sft", tiny_llama, GREEDY, 6, change, settled=False).texts
    assert padded != alone.texts, "nothing that padding changes"
    together = write("sft", tiny_llama, GREEDY, 6, change)
    assert together.model.prompts_apart
    assert together.texts == alone.texts
    counted: dict[str, Any] = {"micro_batch_size": None, "micro_batch_tokens": 60, "global_batch_size": 12}
    assert write("sft", tiny_llama, GREEDY, change=change, **counted).texts == alone.texts


@pytest.mark.parametrize("task", ["sft", "seq2seq_lm"])
def test_they_are_those_of_plain_generate(folders: dict[str, Path], task: str) -> None:
    """One prompt at a time, and of the model alone: what the recipe says is in its generation config."""
    found = write(task, folders[task], BEAMS)
    tokenizer = found.loader.reading.tokenizer
    for prompt, text in zip(found.loader.split.prompts, found.texts, strict=True):
        ids = torch.tensor([prompt.example["input_ids"]])
        written = found.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids))[0]
        rest = written[ids.shape[1] :] if task == "sft" else written
        assert tokenizer.decode(rest, skip_special_tokens=True) == text


def test_what_is_drawn_is_not_what_is_likeliest_and_depends_on_the_seed(tiny_llama: Path) -> None:
    ours = write("sft", tiny_llama, DRAWN).texts
    assert ours != write("sft", tiny_llama, GREEDY).texts
    found = write("sft", tiny_llama, DRAWN)
    assert found.texts == ours
    config = found.model.generation_config
    assert (config.do_sample, config.top_k, config.top_p, config.temperature) == (True, 50, 0.9, 0.8)


def _lora(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM"))


CHANGES = {
    "packed": lambda model: Packing(model) and None,
    "packed, without a cache": lambda model: Packing(model) and setattr(model.generation_config, "use_cache", False),
    "chunked": lambda model: chunk_logits(model),
    "compiled": lambda model: compile_layers(model),
    "recomputed": lambda model: keep_activations(model, "recompute"),
    "an adapter that does nothing yet": _lora,
}


@pytest.fixture
def dynamo() -> Iterator[None]:
    import torch._dynamo

    before = torch._dynamo.config.recompile_limit, torch._dynamo.config.fail_on_recompile_limit_hit
    yield
    torch._dynamo.config.recompile_limit, torch._dynamo.config.fail_on_recompile_limit_hit = before
    torch._dynamo.reset()


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_whatever_training_runs_with_steps_aside(tiny_llama: Path, change: Any, dynamo: None) -> None:
    assert write("sft", tiny_llama, GREEDY, change=change).texts == write("sft", tiny_llama, GREEDY).texts


def test_a_compiled_model_is_not_compiled_for_it(tiny_llama: Path, monkeypatch: Any, dynamo: None) -> None:
    from torch._dynamo.utils import counters

    counters.clear()
    write("sft", tiny_llama, GREEDY, change=compile_layers)
    assert counters["stats"]["unique_graphs"] == 0


def test_samples_show_what_was_read_written_and_right(tiny_llama: Path) -> None:
    found = write("sft", tiny_llama, GREEDY)
    (first, second) = samples_of(found.loader, found.texts, 2)
    assert first["text"] == found.texts[0] and first["reference"] == "x" and (first["row"], second["row"]) == (0, 1)
    assert first["prompt"] == "<|im_start|>user\nthe quick brown fox<|im_end|>\n<|im_start|>assistant\n"


def test_a_row_of_several_examples_has_its_text_at_the_last() -> None:
    rows = torch.tensor([0, 2, 2, 3])
    prompts = [Prompt(0, {}, 1, "a"), Prompt(2, {}, 1, "b")]
    loader: Any = SimpleNamespace(split=SimpleNamespace(rows=rows, prompts=prompts))
    found: dict[int, dict[str, Any]] = {number: {"loss": 1.0} for number in range(4)}
    predictions._add_texts(found, loader, ["A", "B"])
    assert [found[number].get("text") for number in range(4)] == ["A", None, "B", None]
    assert found[2] == {"text": "B", "reference": "b", "loss": 1.0}


def test_rows_without_a_text_are_not_asked() -> None:
    task: Any = load_task(TaskSection(name="sft", generate=GREEDY))
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    assert task.asked({"text": "learnt whole"}) is None
    assert task.asked({"messages": [*turns, call]}) is None
    assert task.asked({"messages": turns, "tools": None}) == ({"messages": turns[:1], "tools": None}, "b")
    assert task.asked({"prompt": "a", "input": "more", "response": "b"}) == ({"prompt": "a", "input": "more"}, "b")
    system = task.asked({"prompt": turns[:1], "response": [turns[1]], "system": "s"})
    assert system == ({"messages": [{"role": "system", "content": "s"}, turns[0]], "tools": None}, "b")


def test_a_split_s_scores_are_those_that_were_told() -> None:
    settings = {"generate": GREEDY, "metrics": ["rouge", "exact_match"]}
    for name in ("sft", "seq2seq_lm"):
        task: Any = load_task(TaskSection(name=name, **settings))
        scores = task.metrics([], 1.0, Survey()) | task.score_texts([("a b", "a b"), ("a", "c")])
        assert sorted(scores) == sorted(task.metric_names)
        assert scores["exact_match"] == scores["rouge1"] == 0.5
