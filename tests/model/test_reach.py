"""Which trained parameters a loss reaches: held against the gradients that plain torch computes."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from onecurve.config import RegularizationSection, TaskSection
from onecurve.data import examples as stored_examples
from onecurve.data.examples import Examples, record_batches, write_batches
from onecurve.errors import ConfigError, TrainingError
from onecurve.model import reach
from onecurve.strategies.base import is_left_out
from onecurve.tasks import load_task
from tests.models_with_unused_parts import SIZES
from tests.readings import padding

CAUSAL_LM, CLASSIFICATION = (load_task(TaskSection(name=name)) for name in ("causal_lm", "text_classification"))
COMMON = {
    **SIZES,
    "vocab_size": 61,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MOE = {**COMMON, "num_key_value_heads": 2, "num_local_experts": 32}
ESM = {**COMMON, "position_embedding_type": "rotary", "mask_token_id": 3}
OPT = {
    "vocab_size": 61, "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_attention_heads": 4,
    "num_hidden_layers": 3, "layerdrop": 0.5,
}  # fmt: skip
BART = {
    "vocab_size": 61, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64,
    "pad_token_id": 0, "eos_token_id": 2, "encoder_layerdrop": 0.3, "decoder_layerdrop": 0.2,
}  # fmt: skip
XLNET = {"vocab_size": 61, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64, "pad_token_id": 0}
XLM = {"vocab_size": 61, "emb_dim": 32, "n_layers": 2, "n_heads": 4, "n_langs": 3, "pad_index": 0}
CASES = {
    "a pooler": (CLASSIFICATION, "BigBird", {**COMMON, "attention_type": "original_full"}, 2),
    "a head for contacts": (CLASSIFICATION, "Esm", ESM, 2),
    "languages": (CLASSIFICATION, "XLM", XLM, 1),
    "segments and a mask": (CLASSIFICATION, "XLNet", XLNET, 5),
    "nothing": (CLASSIFICATION, "Bert", COMMON, 0),
    "nothing, of layers that training leaves out": (CLASSIFICATION, "Bart", BART, 0),
    "nothing, of decoder layers that training leaves out": (CAUSAL_LM, "OPT", OPT, 0),
    "nothing, of more experts than tokens": (CAUSAL_LM, "Mixtral", MOE, 0),
}  # fmt: skip


class Split:
    """Examples, as `probe` reads them."""

    def __init__(self, examples: list[dict[str, Any]], optional: tuple[int, ...] = ()) -> None:
        self.taken = examples
        order = np.argsort([len(example["input_ids"]) for example in examples], kind="stable").tolist()
        self.examples = SimpleNamespace(
            optional=lambda: list(optional), short_and_middle=lambda: [order[0], order[len(order) // 2]]
        )

    def take(self, numbers: list[int]) -> list[dict[str, Any]]:
        return [self.taken[number] for number in numbers]


def texts(task: Any, lengths: tuple[int, ...] = (7, 5, 11)) -> list[dict[str, Any]]:
    generator = np.random.default_rng(0)
    rows = [[*generator.integers(5, 61, length).tolist(), 2] for length in lengths]
    labels = rows if task is CAUSAL_LM else [number % 3 for number in range(len(rows))]
    return [{"input_ids": row, "labels": label, "num_items": 1} for row, label in zip(rows, labels, strict=True)]


def build(task: Any, kind: str, fields: dict[str, Any]) -> Any:
    auto = AutoModelForCausalLM if task is CAUSAL_LM else AutoModelForSequenceClassification
    torch.manual_seed(0)
    return auto.from_config(getattr(transformers, f"{kind}Config")(**fields, num_labels=3))


def probe(model: Any, task: Any, split: Split, precision: str = "no") -> tuple[str, list[str]]:
    section = SimpleNamespace(quantization=None)
    recipe: Any = SimpleNamespace(seed=0, peft=None, model=section, regularization=RegularizationSection())
    accelerator = SimpleNamespace(device=torch.device("cpu"), num_processes=1, state=SimpleNamespace())
    return reach.probe(model, recipe, task, split, padding(0), precision, accelerator)


def without_gradient(model: Any, task: Any, examples: list[dict[str, Any]]) -> set[str]:
    batch = task.collate(examples, padding(0))
    task.loss_sum(task.forward(model.train(), batch), batch).backward()
    return {name for name, parameter in model.named_parameters() if parameter.grad is None}


def left_out(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if is_left_out(parameter)}


@pytest.mark.parametrize("case", CASES)
def test_what_is_frozen_is_what_gets_no_gradient(case: str) -> None:
    task, kind, fields, count = CASES[case]
    said, sometimes = probe(model := build(task, kind, fields), task, Split(texts(task)))
    assert sometimes == [] and ("unused" in said) is bool(count)
    whole = build(task, kind, {**fields, **{key: 0.0 for key in fields if "layerdrop" in key}})
    assert left_out(model) == without_gradient(whole, task, texts(task))
    assert len(left_out(model)) == count
    assert not any(parameter.requires_grad for parameter in model.parameters() if is_left_out(parameter))


def test_layers_are_not_left_out_at_random_and_that_is_said() -> None:
    said, _ = probe(model := build(CLASSIFICATION, "Bart", BART), CLASSIFICATION, Split(texts(CLASSIFICATION)))
    assert said.startswith("layerdrop 0.3 in the model's config, set to 0")
    assert model.config.encoder_layerdrop == model.config.decoder_layerdrop == model.model.encoder.layerdrop == 0


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_adapters_of_what_texts_do_not_reach_are_frozen(precision: str) -> None:
    text = {**COMMON, "num_key_value_heads": 2, "head_dim": 8}
    config = transformers.Gemma3Config(
        text_config=text, vision_config={**SIZES, "hidden_size": 16, "image_size": 28, "patch_size": 14}
    )
    model = AutoModelForCausalLM.from_config(config)
    model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "fc1"]))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    probe(model, CAUSAL_LM, Split(texts(CAUSAL_LM)), precision)
    frozen = left_out(model)
    assert len(frozen) == 5 * 2 and all("vision_tower" in name and "lora" in name for name in frozen)


class Experts(nn.Module):
    """Runs one of its experts, and never its spare part."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Embedding(61, 4)
        self.experts = nn.ModuleList(nn.Linear(4, 3) for _ in range(3))
        self.spare = nn.ModuleList(nn.Linear(4, 3) for _ in range(2))
        self.norm = nn.BatchNorm1d(4)

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        hidden = self.norm(self.first(input_ids).flatten(0, 1)).mean(0, keepdim=True)
        return SimpleNamespace(logits=self.experts[input_ids.shape[1] % 2](hidden))

    def get_output_embeddings(self) -> None:
        return None


def test_experts_that_no_example_reached_stay_trained() -> None:
    model = Experts()
    statistics = model.norm.running_mean.clone()
    said, sometimes = probe(model, CLASSIFICATION, Split(texts(CLASSIFICATION, (7, 7, 7))))
    assert left_out(model) == {f"spare.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")}
    assert sometimes == [f"experts.{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")]
    assert "partial   experts.1.weight, experts.1.bias, experts.2.weight and 1 more" in said
    assert torch.equal(model.norm.running_mean, statistics)


def test_experts_that_only_some_examples_reach_are_told() -> None:
    _, sometimes = probe(Experts(), CLASSIFICATION, Split(texts(CLASSIFICATION, (4, 5, 6))))
    assert [name for name in sometimes if "experts.0" in name or "experts.1" in name] == [
        f"experts.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")
    ]


def test_inputs_that_only_some_examples_have_are_tried() -> None:
    examples = texts(CLASSIFICATION, (7, 7, 7, 7))
    examples[2]["token_type_ids"] = [0] * 4 + [1] * 4
    model = build(CLASSIFICATION, "XLNet", XLNET)
    _, sometimes = probe(model, CLASSIFICATION, Split(examples, optional=(2, 0)))
    assert left_out(model) == {"transformer.mask_emb"}
    assert len(sometimes) == 4 and all("seg_embed" in name or "r_s_bias" in name for name in sometimes)


@pytest.mark.parametrize("at_a_time", [3, 100])
def test_such_examples_are_found(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, at_a_time: int) -> None:
    monkeypatch.setattr(stored_examples, "_BATCH_EXAMPLES", at_a_time)
    examples = texts(CLASSIFICATION, (7,) * 9)
    for number in (4, 6):
        examples[number]["token_type_ids"] = [0] * 8
    write_batches(tmp_path, record_batches(examples, lambda example: (len(example["input_ids"]),) * 2))
    assert sorted(Examples(tmp_path).optional()) == [0, 4]


def test_use_of_what_was_frozen_ends_the_run() -> None:
    model = Experts()
    probe(model, CLASSIFICATION, Split(texts(CLASSIFICATION)))
    model.eval().spare[1](torch.ones(1, 4))
    with pytest.raises(TrainingError, match=r"spare.1.weight is not trained, .* but this step does"):
        model.train().spare[1](torch.ones(1, 4))


def test_a_loss_that_reaches_nothing_of_what_is_trained_is_refused() -> None:
    model = build(CLASSIFICATION, "BigBird", {**COMMON, "attention_type": "original_full"}).requires_grad_(False)
    model.bert.pooler.requires_grad_(True)
    with pytest.raises(ConfigError, match=r"depends on none of the trained parameters: bert\.pooler\.weight"):
        probe(model, CLASSIFICATION, Split(texts(CLASSIFICATION)))
