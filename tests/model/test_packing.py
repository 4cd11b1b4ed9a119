from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from onecurve.config import RegularizationSection, TaskSection
from onecurve.errors import ConfigError
from onecurve.model import packed_attention
from onecurve.model import packing as packing_module
from onecurve.model.packed_attention import Documents, _Kernel, attend
from onecurve.model.packing import Packing, pack
from onecurve.strategies.plain import Plain
from onecurve.tasks import load_task
from tests.readings import padding

CAUSAL_LM, CLASSIFICATION = (load_task(TaskSection(name=name)) for name in ("causal_lm", "text_classification"))
SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
OTHER_NAMES = {"vocab_size": 61, "pad_token_id": 0, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}
GPT2 = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "pad_token_id": 0}
DECODERS = {
    "llama, grouped heads": ("Llama", GROUPED),
    "qwen3": ("Qwen3", {**GROUPED, "head_dim": 8}),
    "mistral, a window no shorter than a text": ("Mistral", {**GROUPED, "sliding_window": 11}),
    "gpt2": ("GPT2", GPT2),
}
ENCODERS = {
    "bert": ("Bert", SIZES),
    "roberta, whose positions start elsewhere": ("Roberta", {**SIZES, "pad_token_id": 1}),
    "distilbert": ("DistilBert", OTHER_NAMES),
    "electra": ("Electra", {**SIZES, "embedding_size": 16}),
}
CASES = {
    **{name: ("causal_lm", *entry) for name, entry in DECODERS.items()},
    "llama that classifies": ("text_classification", "Llama", GROUPED),
    **{name: ("text_classification", *entry) for name, entry in ENCODERS.items()},
}


def build(task: str, kind: str, fields: dict[str, Any]) -> Any:
    config = getattr(transformers, f"{kind}Config")(**fields, bos_token_id=3, eos_token_id=4, num_labels=3)
    auto = AutoModelForCausalLM if task == "causal_lm" else AutoModelForSequenceClassification
    torch.manual_seed(0)
    model = auto.from_config(config, attn_implementation="sdpa").eval()
    with torch.no_grad():
        for weight in model.parameters():  # upstream starts at 0.02, where attention hardly matters
            weight.mul_(4)
    return model


def examples(lengths: tuple[int, ...] = (7, 2, 11, 4)) -> list[dict[str, Any]]:
    generator = np.random.default_rng(0)
    texts = [generator.integers(5, 61, length).tolist() for length in lengths]
    return [{"input_ids": text, "labels": text, "num_items": len(text) - 1} for text in texts]


def examples_of(task: str, lengths: tuple[int, ...] = (7, 2, 11, 4)) -> list[dict[str, Any]]:
    labelled = [{**e, "labels": i % 3, "num_items": 1} for i, e in enumerate(examples(lengths))]
    return examples(lengths) if task == "causal_lm" else labelled


def run(task: Any, model: Any, batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    logits = task.forward(model, batch)
    task.loss_sum(logits, batch).backward()
    return logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def agree(one: tuple[Any, Any], other: tuple[Any, Any]) -> None:
    assert torch.allclose(one[0], other[0], rtol=1e-4, atol=1e-4 * float(one[0].std()))
    assert one[1].keys() == other[1].keys()
    largest = max(float(gradient.norm()) for gradient in one[1].values())
    for name, gradient in one[1].items():
        assert float((gradient - other[1][name]).norm()) < 1e-5 * largest, name


@pytest.mark.parametrize("lengths", [(7, 2, 11, 4), (6, 6, 6), (5,)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_packed_logits_and_gradients_are_those_of_padded_examples(case: str, lengths: tuple[int, ...]) -> None:
    name, *of_model = CASES[case]
    task, model = {"causal_lm": CAUSAL_LM, "text_classification": CLASSIFICATION}[name], build(name, *of_model)
    batch = task.collate(examples_of(name, lengths), padding(model.config.pad_token_id))
    padded = run(task, model, batch)
    packing, rows = Packing(model), []
    watch = packing.backbone.register_forward_pre_hook(
        lambda _, __, given: rows.append(given["input_ids"].shape), with_kwargs=True
    )
    agree(padded, run(task, model, batch))
    assert rows == [(1, sum(lengths))]
    watch.remove()
    packing.remove()
    agree(padded, run(task, model, batch))
    assert model.config._attn_implementation == "sdpa" and not model.base_model._forward_hooks


def test_activations_are_recomputed_packed() -> None:
    model = build("causal_lm", "Llama", GROUPED)
    batch = CAUSAL_LM.collate(examples(), padding(0))
    padded = run(CAUSAL_LM, model, batch)
    Packing(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    agree(padded, run(CAUSAL_LM, model.train(), batch))


def test_left_padding_is_left_out_too() -> None:
    model = build("causal_lm", "Llama", GROUPED)
    batch = {name: tensor.flip(1) for name, tensor in CAUSAL_LM.collate(examples(), padding(0)).items()}
    padded = run(CAUSAL_LM, model, batch)
    Packing(model)
    agree(padded, run(CAUSAL_LM, model, batch))


def test_a_generation_with_its_cache_runs_as_before() -> None:
    model = build("causal_lm", "Llama", GROUPED)
    batch = CAUSAL_LM.collate(examples(), padding(0))
    inputs = {name: batch[name].flip(1) for name in ("input_ids", "attention_mask")}
    before = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    Packing(model)
    assert torch.equal(model.generate(**inputs, max_new_tokens=5, do_sample=False), before)


def test_no_trace_of_it_is_saved(tmp_path: Any) -> None:
    model = build("causal_lm", "Llama", GROUPED)
    model.save_pretrained(tmp_path / "before")
    Packing(model)
    model.save_pretrained(tmp_path / "after")
    for path in (tmp_path / "before").iterdir():
        assert path.read_bytes() == (tmp_path / "after" / path.name).read_bytes()


def test_dropout_drops_within_documents_only() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 5, 4) for _ in range(3))
    value[:, :, 2:] = 0  # so that nothing may reach the second document
    documents = Documents([2, 3], torch.tensor([0, 2, 5], dtype=torch.int32))
    module = SimpleNamespace(is_causal=False)
    draws = [attend(module, query, key, value, None, dropout=0.5, documents=documents)[0] for _ in range(2)]
    assert not torch.equal(*draws)
    assert all(bool((draw[:, 2:] == 0).all()) and bool((draw[:, :2] != 0).any()) for draw in draws)


# What decides whether a run is packed


class Split:
    """What `pack` asks of a split."""

    def __init__(self, examples: list[dict[str, Any]]) -> None:
        self.taken = examples
        self.lengths = np.array([len(e["input_ids"]) for e in examples])
        order = self.lengths.argsort(kind="stable")
        self.examples = SimpleNamespace(short_and_middle=lambda: [order[0], order[len(order) // 2]])

    def take(self, indices: Any) -> list[dict[str, Any]]:
        return [self.taken[i] for i in indices]


def ask(asked: str, model: Any, attn: str | None = None, task: Any = CAUSAL_LM, precision: str = "no") -> str:
    recipe: Any = SimpleNamespace(
        train=SimpleNamespace(packing=asked),
        model=SimpleNamespace(attn_implementation=attn),
        regularization=RegularizationSection(),
    )
    name = "causal_lm" if task is CAUSAL_LM else "text_classification"
    splits: Any = [Split(examples_of(name)), Split(examples_of(name, (3, 12)))]
    strategy = Plain(Accelerator(cpu=True), precision, 1.0)
    strategy.prepare(model, torch.optim.SGD(model.parameters()), 1)
    return pack(strategy, recipe, precision, task, splits, padding(0))


def is_packed(model: Any) -> bool:
    return model.config._attn_implementation == "packed" and len(model.base_model._forward_hooks) > 0


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("asked", ["on", "auto"])
@pytest.mark.parametrize("case", [name for name in CASES if "window" not in name])
def test_what_can_be_packed_is(case: str, asked: str, precision: str) -> None:
    name, *of_model = CASES[case]
    model, task = build(name, *of_model), CAUSAL_LM if name == "causal_lm" else CLASSIFICATION
    assert ask(asked, model, task=task, precision=precision) == ""
    assert is_packed(model)


def test_off_leaves_the_model_alone() -> None:
    model = build("causal_lm", "Llama", GROUPED)
    assert ask("off", model) == ""
    assert not is_packed(model)


def refused(why: str, model: Any, base: Any = None, **options: Any) -> None:
    assert why in ask("auto", model, **options)
    assert not is_packed(base or model)
    with pytest.raises(ConfigError, match=r"train\.packing"):
        ask("on", model, **options)


def test_a_window_shorter_than_the_longest_example_of_any_split_is_refused() -> None:
    refused("sliding window of 11", build("causal_lm", "Mistral", {**GROUPED, "sliding_window": 11}))
    assert ask("on", build("causal_lm", "Mistral", {**GROUPED, "sliding_window": 12})) == ""


def test_another_attention_is_not_replaced() -> None:
    refused("attn_implementation is eager", build("causal_lm", "Llama", GROUPED), attn="eager")


def test_virtual_tokens_are_refused() -> None:
    import peft

    base = build("causal_lm", "Llama", GROUPED)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    refused("virtual tokens", peft.get_peft_model(base, config), base)


def test_attention_outside_the_interface_is_refused() -> None:
    names = ("Deberta", {**SIZES, "relative_attention": True, "pos_att_type": ["c2p"], "type_vocab_size": 0})
    config = getattr(transformers, f"{names[0]}Config")(**names[1])
    model = AutoModelForSequenceClassification.from_config(config)
    refused("attention interface", model, task=CLASSIFICATION)


def test_layers_that_carry_a_state_across_documents_are_refused() -> None:
    model = build("causal_lm", "Llama", GROUPED)
    model.config.layer_types = ["full_attention", "linear_attention"]
    refused("linear_attention", model)


def one_document(sizes: list[int], boundaries: torch.Tensor) -> Documents:
    return Documents([sum(sizes)], boundaries[[0, -1]])


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_documents_that_see_each_other_are_noticed(precision: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(packing_module, "Documents", one_document)
    model = build("causal_lm", "Llama", GROUPED)
    with torch.no_grad():  # so little that rounding to half precision would explain it
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(0.0002)
    refused("different logits", model, precision=precision)


@pytest.mark.parametrize("case", ["bert", "gpt2"])
def test_positions_that_go_on_counting_are_noticed(case: str, monkeypatch: Any) -> None:
    name, *of_model = CASES[case]
    monkeypatch.setattr(packing_module, "_first_position", lambda backbone: 1)
    refused("different logits", build(name, *of_model), task=CAUSAL_LM if name == "causal_lm" else CLASSIFICATION)


def test_a_model_that_cannot_run_a_packed_row_is_told_of_not_a_traceback(monkeypatch: Any) -> None:
    def refuse(*_: Any, **__: Any) -> Documents:
        raise TypeError("forward() got an unexpected keyword argument")

    monkeypatch.setattr(packing_module, "Documents", refuse)
    refused("cannot run a packed row", build("causal_lm", "Llama", GROUPED))


def only_in_half(query: torch.Tensor, *_: Any) -> bool:
    """What takes a row to the kernel: here on a CPU, but for that as on a GPU."""
    return query.dtype == torch.bfloat16


@pytest.mark.parametrize("why", ["head_size must be a multiple of 8", "varlen_attn() got an unexpected argument"])
def test_a_kernel_that_fails_is_told_of_before_the_first_step(why: str, monkeypatch: Any) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise (TypeError if "argument" in why else RuntimeError)(why)

    monkeypatch.setattr(packed_attention, "_has_kernel", only_in_half)
    monkeypatch.setattr(packed_attention, "_kernel", lambda: _Kernel(fails, groups_heads=True))
    assert ask("auto", build("causal_lm", "Llama", GROUPED)) == "", "float32 does without the kernel"
    refused(why, build("causal_lm", "Llama", GROUPED), precision="bf16")


def test_a_kernel_that_computes_something_else_is_noticed(monkeypatch: Any) -> None:
    monkeypatch.setattr(packed_attention, "_has_kernel", only_in_half)
    monkeypatch.setattr(packed_attention, "_kernel", lambda: _Kernel(lambda query, *_, **__: query, groups_heads=True))
    refused("different logits", build("causal_lm", "Llama", GROUPED), precision="bf16")


def test_memory_that_runs_out_meanwhile_is_no_reason_to_pad(monkeypatch: Any) -> None:
    def runs_out(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(packed_attention, "_has_kernel", only_in_half)
    monkeypatch.setattr(packed_attention, "_kernel", lambda: _Kernel(runs_out, groups_heads=True))
    with pytest.raises(torch.OutOfMemoryError):
        ask("auto", build("causal_lm", "Llama", GROUPED), precision="bf16")
