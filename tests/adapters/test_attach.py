"""An adapter trains itself and the new head, in float32, and nothing else; it is saved and loads again."""

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from onecurve.adapters import add_adapter
from onecurve.adapters.attach import _check_trained
from onecurve.config import PeftSection
from onecurve.errors import ConfigError

from .conftest import NO_DROPOUT, SIZES, bert, llama, llama_classifier

METHODS = {
    "lora": dict(method="lora", r=4),
    "dora": dict(method="lora", r=4, use_dora=True),
    "rslora": dict(method="lora", r=4, use_rslora=True),
    "pissa": dict(method="lora", r=4, init_lora_weights="pissa"),
    "ia3": dict(method="ia3"),
    "prefix": dict(method="prefix_tuning", num_virtual_tokens=4),
    "prompt": dict(method="prompt_tuning", num_virtual_tokens=4),
    "p_tuning": dict(method="p_tuning", num_virtual_tokens=4),
    "llama_adapter": dict(method="adaption_prompt", adapter_len=4, adapter_layers=2),
    "houlsby": dict(method="bottleneck", bottleneck_size=8),
    "pfeiffer": dict(method="bottleneck", bottleneck_size=8, variant="pfeiffer"),
    "vera": dict(method="vera", r=8),
    "oft": dict(method="oft", r=0, oft_block_size=8),
}
PAIRS = [("bert", name) for name in METHODS if name != "llama_adapter"] + [("llama", name) for name in METHODS]
PARTS = ("lora_", "ia3_", "prompt_encoder", "adaption_", "bottleneck_", "vera_", "oft_")


def adapt(kind: str, section: dict, dtype=torch.float32):
    base = (bert() if kind == "bert" else llama()).to(dtype)
    torch.manual_seed(7)
    task, new = ("SEQ_CLS", ["classifier"]) if kind == "bert" else ("CAUSAL_LM", [])
    return add_adapter(base, PeftSection(**section), task_type=task, new_modules=new)


def logits(model: nn.Module, batch: dict) -> torch.Tensor:
    extra = {} if model.config.model_type == "bert" else {"use_cache": False}
    return model(**batch, **extra).logits[..., -10:, :] if extra else model(**batch).logits


def loss(model: nn.Module, batch: dict) -> torch.Tensor:
    out = logits(model, batch).float()
    if out.dim() == 2:
        return F.cross_entropy(out, torch.tensor([0, 1, 2, 1]))
    return F.cross_entropy(out[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten())


def train(model: nn.Module, batch: dict, steps: int = 6, autocast: bool = False) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):  # per step: it caches the weights it has cast
            value = loss(model, batch)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_an_adapter_learns_alone_and_loads_again(kind, name, batch, tmp_path):
    model = adapt(kind, METHODS[name])
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all(any(part in n for part in PARTS) or "classifier.modules_to_save" in n for n in trained)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}

    losses = train(model, batch)

    assert losses[-1] < losses[0] - 1e-4
    for n, p in model.named_parameters():
        assert torch.equal(p, before[n]) != (n in trained), n
    model.eval()
    expected = logits(model, batch)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(bert() if kind == "bert" else llama(), tmp_path).eval()
    torch.testing.assert_close(logits(loaded, batch), expected, rtol=0, atol=1e-6)
    if kind == "bert":
        head = "classifier.modules_to_save.default.weight"
        (ours,) = [p for n, p in model.named_parameters() if n.endswith(head)]
        (theirs,) = [p for n, p in loaded.named_parameters() if n.endswith(head)]
        assert torch.equal(ours, theirs)
        assert not torch.equal(theirs, bert().classifier.weight)


@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_the_seed_fixes_every_random_draw(kind, name):
    first, second = adapt(kind, METHODS[name]), adapt(kind, METHODS[name])
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_what_is_trained_is_float32_on_a_bfloat16_base(kind, name, batch):
    model = adapt(kind, METHODS[name], torch.bfloat16)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert torch.bfloat16 in {p.dtype for p in model.parameters()}
    losses = train(model, batch, autocast=True)
    assert losses[-1] < losses[0]
    if name != "llama_adapter":  # PEFT's own projects the prompt with the base's layers: it needs autocast
        loss(model, batch).backward()


def test_layer_normalisation_on_a_bfloat16_base_is_trained_in_float32(batch):
    model = adapt("llama", dict(method="ln_tuning"), torch.bfloat16)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    losses = train(model, batch)
    assert losses[-1] < losses[0]


def test_biases_of_a_half_precision_base_are_refused():
    with pytest.raises(ConfigError, match=r"model\.dtype: float32"):
        adapt("bert", dict(method="lora", bias="all"), torch.bfloat16)
    adapt("bert", dict(method="lora", bias="all"))


def test_without_a_section_every_weight_is_trained():
    model = bert()
    assert add_adapter(model, None, task_type="SEQ_CLS", new_modules=["classifier"]) is model
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("changes", [{"num_labels": 1}, {"problem_type": "multi_label_classification"}])
@pytest.mark.parametrize("name", ["lora", "prompt", "prefix", "houlsby"])
def test_heads_for_numbers_and_several_labels_are_saved_too(name, changes, batch, tmp_path):
    model = add_adapter(bert(**changes), PeftSection(**METHODS[name]), task_type="SEQ_CLS", new_modules=["classifier"])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model(**batch).logits.square().sum().backward()
    optimizer.step()
    model.eval().save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(bert(**changes), tmp_path)
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    assert not torch.equal(loaded(**batch).logits, bert(**changes).eval()(**batch).logits)


def test_a_decoder_s_new_head_is_trained_and_saved(batch, tmp_path):
    for name in ("lora", "prefix", "houlsby", "ia3"):
        model = llama_classifier()
        model = add_adapter(model, PeftSection(**METHODS[name]), task_type="SEQ_CLS", new_modules=["score"])
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        model(**batch).logits.square().sum().backward()
        optimizer.step()
        model.eval().save_pretrained(tmp_path / name)
        loaded = PeftModel.from_pretrained(llama_classifier(), tmp_path / name)
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)
        assert not torch.equal(loaded.score.weight, llama_classifier().score.weight)


def test_new_modules_that_peft_does_not_know_are_trained_and_saved(batch, tmp_path):
    for name in ("lora", "prompt"):
        model = add_adapter(
            bert(), PeftSection(**METHODS[name]), task_type="SEQ_CLS", new_modules=["classifier", "bert.pooler.dense"]
        )
        train(model, batch, steps=1)
        model.eval().save_pretrained(tmp_path / name)
        loaded = PeftModel.from_pretrained(bert(), tmp_path / name)
        assert not torch.equal(loaded.bert.pooler.dense.weight, bert().bert.pooler.dense.weight)
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_parts_of_a_head_that_is_trained_whole_are_not_wrapped_twice():
    config = RobertaConfig(**SIZES, max_position_embeddings=64, num_labels=3)
    model = add_adapter(
        RobertaForSequenceClassification(config),
        PeftSection(method="lora"),
        task_type="SEQ_CLS",
        new_modules=["classifier.out_proj", "classifier.dense"],
    )
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad and "classifier" in n}
    assert len(trained) == 4
    assert all(".classifier.modules_to_save.default." in n for n in trained)
    model(input_ids=torch.ones(1, 3, dtype=torch.long)).logits.sum().backward()
    assert all(p.grad is not None for p in trained.values())  # wrapped twice, PEFT trains copies that nothing calls


def test_a_new_module_left_frozen_is_noticed():
    model = bert()
    adapted = add_adapter(model, PeftSection(method="lora"), task_type="SEQ_CLS", new_modules=[])
    with pytest.raises(AssertionError, match="pooler is new"):
        _check_trained(adapted, model, "LORA", ["bert.pooler"])


def test_a_trained_copy_of_a_partitioned_weight_is_noticed():
    model = bert()
    adapted = add_adapter(model, PeftSection(method="lora"), task_type="SEQ_CLS", new_modules=[])
    adapted.register_parameter("copy", nn.Parameter(torch.empty(0)))
    with pytest.raises(ConfigError, match="ZeRO-3"):
        _check_trained(adapted, model, "LN_TUNING", [])


def test_a_method_for_other_models_is_refused():
    with pytest.raises(ConfigError, match=r"peft\.method: adaption_prompt does not fit .*Unsupported model type"):
        add_adapter(
            bert(),
            PeftSection(method="adaption_prompt", adapter_len=2, adapter_layers=1),
            task_type="SEQ_CLS",
            new_modules=[],
        )


def test_a_new_head_beside_a_method_that_cannot_train_it_is_refused():
    section = PeftSection(method="adaption_prompt", adapter_len=2, adapter_layers=1)
    with pytest.raises(ConfigError, match="cannot train a new score"):
        add_adapter(llama_classifier(), section, task_type="SEQ_CLS", new_modules=["score"])


def test_targets_that_no_module_has_are_refused():
    with pytest.raises(ConfigError, match=r"lora does not fit LlamaForCausalLM: Target modules .*nothing.* not found"):
        adapt("llama", dict(method="lora", target_modules=["nothing"]))


class UnheardOf(BertConfig):
    model_type = "unheard_of"


def test_a_model_type_that_peft_does_not_know_gets_all_linear_layers():
    config = UnheardOf(**SIZES, num_labels=3)
    for method in ("lora", "ia3", "vera"):
        model = BertForSequenceClassification(config)
        model = add_adapter(model, PeftSection(method=method), task_type="SEQ_CLS", new_modules=["classifier"])
        assert any("intermediate.dense" in n and p.requires_grad for n, p in model.named_parameters())
    with pytest.raises(ConfigError, match="'unheard_of' are not known: name them in target_modules"):
        add_adapter(
            BertForSequenceClassification(config),
            PeftSection(method="bottleneck"),
            task_type="SEQ_CLS",
            new_modules=[],
        )


def test_prompts_work_where_sizes_have_other_names(batch):
    config = DistilBertConfig(
        vocab_size=64, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=64, num_labels=3
    )
    for name in ("prompt", "p_tuning"):
        model = DistilBertForSequenceClassification(config)
        model = add_adapter(model, PeftSection(**METHODS[name]), task_type="SEQ_CLS", new_modules=["pre_classifier"])
        assert model(**batch).logits.shape == (4, 3)


def test_a_prefix_is_refused_where_the_model_takes_no_cache():
    config = DebertaV2Config(**SIZES, **NO_DROPOUT, max_position_embeddings=64, num_labels=3)
    with pytest.raises(ConfigError, match="key-value cache, which this model does not support"):
        add_adapter(
            DebertaV2ForSequenceClassification(config),
            PeftSection(**METHODS["prefix"]),
            task_type="SEQ_CLS",
            new_modules=[],
        )


def test_a_prompt_is_refused_where_padding_would_be_scored(batch):
    gpt2 = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, pad_token_id=0, num_labels=3)
    for name in ("prompt", "p_tuning"):
        for model in (llama_classifier(), GPT2ForSequenceClassification(gpt2)):
            with pytest.raises(ConfigError, match="classified from its padding"):
                add_adapter(model, PeftSection(**METHODS[name]), task_type="SEQ_CLS", new_modules=["score"])


def test_a_prompt_is_refused_where_the_task_names_no_kind_of_model():
    with pytest.raises(ConfigError, match="need a task type of PEFT"):
        add_adapter(llama(), PeftSection(**METHODS["prompt"]), task_type=None, new_modules=[])


@pytest.mark.parametrize("name", ["prefix", "prompt", "p_tuning"])
@pytest.mark.parametrize("kind", ["bert", "llama", "llama_classifier"])
def test_a_prompt_reaches_the_logits_and_padding_does_not(kind, name, batch):
    if (kind, name) in (("llama_classifier", "prompt"), ("llama_classifier", "p_tuning")):
        pytest.skip("refused, see above")
    if kind == "llama_classifier":
        model = add_adapter(
            llama_classifier(), PeftSection(**METHODS[name]), task_type="SEQ_CLS", new_modules=["score"]
        )
    else:
        model = adapt(kind, METHODS[name])
    model.eval()
    out = logits(model, batch) if kind != "llama_classifier" else model(**batch).logits
    out.square().sum().backward()
    assert sum(p.grad.abs().sum() for n, p in model.named_parameters() if "prompt_encoder" in n) > 1e-6
    alone = {key: value[:1, :7] for key, value in batch.items()}
    if kind == "llama":
        single, padded = model(**alone, use_cache=False).logits[:, -7:], out[:1, :7]
    else:
        single, padded = model(**alone).logits, out[:1]
    torch.testing.assert_close(single, padded, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["lora", "prompt", "houlsby", "llama_adapter"])
def test_gradient_checkpointing_changes_no_gradient(name, batch):
    grads = []
    for checkpointed in (False, True):
        base = llama()
        if checkpointed:
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
        torch.manual_seed(7)
        model = add_adapter(base, PeftSection(**METHODS[name]), task_type="CAUSAL_LM", new_modules=[]).train()
        loss(model, batch).backward()
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
    assert any(g.abs().sum() > 0 for g in grads[0])
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_a_prefix_with_gradient_checkpointing_is_refused():
    base = llama()
    base.gradient_checkpointing_enable()
    with pytest.raises(ConfigError, match="gradient checkpointing"):
        add_adapter(base, PeftSection(**METHODS["prefix"]), task_type="CAUSAL_LM", new_modules=[])
