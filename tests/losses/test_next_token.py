import copy

import pytest
import torch
from transformers import (
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from onecurve.errors import ConfigError
from onecurve.losses import cross_entropy as token_loss
from onecurve.losses.chunked_head import LossHead, chunk_logits, whole_logits
from onecurve.losses.next_token import next_token_logits, next_tokens, target_loss_sum

IGNORE = -100
VOCABULARY = 67


def batch():
    torch.manual_seed(1)
    ids = torch.randint(1, VOCABULARY, (3, 9))
    mask = torch.ones_like(ids)
    mask[1, 5:] = mask[2, 7:] = 0
    labels = ids.where(mask.bool(), IGNORE)
    labels[0, :4] = labels[2, 3] = IGNORE
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def llama(**fields):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes, **fields))


def tied():
    return llama(tie_word_embeddings=True)


def untied():
    return llama(tie_word_embeddings=False)


def adapted(**settings):
    import peft

    model = peft.get_peft_model(untied(), peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return model


def with_an_adapted_head():
    return adapted(target_modules=["q_proj", "lm_head"])


def with_a_saved_head():
    return adapted(target_modules=["q_proj"], modules_to_save=["lm_head"])


MODELS = [tied, untied, with_an_adapted_head, with_a_saved_head]


@pytest.mark.parametrize("build", MODELS)
def test_loss_and_gradients_are_those_of_every_tokens_logits(build):
    ours, theirs, data = build().eval(), build().eval(), batch()
    theirs.load_state_dict(ours.state_dict())
    loss = target_loss_sum(next_token_logits(ours, data, IGNORE), next_tokens(data["labels"], IGNORE), IGNORE)
    loss.backward()
    count = int((data["labels"][:, 1:] != IGNORE).sum())
    expected = theirs(**data).loss * count
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    gradients = {name: p.grad for name, p in ours.named_parameters() if p.requires_grad}
    assert len(gradients) > 1 and all(gradient is not None for gradient in gradients.values())
    for name, parameter in theirs.named_parameters():
        if parameter.requires_grad:
            assert torch.allclose(gradients[name], parameter.grad, atol=1e-5), name
        else:
            assert parameter.grad is None


def test_the_output_layer_computes_what_is_learnt_and_no_more():
    model, data, seen = untied(), batch(), []
    model.lm_head.register_forward_hook(lambda _, args, output: seen.append((args[0].shape, output.shape)))
    logits = next_token_logits(model, data, IGNORE)
    count = int((data["labels"][:, 1:] != IGNORE).sum())
    assert 0 < count < data["input_ids"].numel()
    assert logits.shape == (count, VOCABULARY)
    assert seen == [((1, count, 32), (1, count, VOCABULARY))]


def test_the_model_is_left_as_it_was_also_by_an_error():
    model, data = untied(), batch()
    whole = copy.deepcopy(model)(**{k: data[k] for k in ("input_ids", "attention_mask")}).logits
    with pytest.raises(IndexError):
        next_token_logits(model, {**data, "input_ids": data["input_ids"] + 1000}, IGNORE)
    next_token_logits(model, data, IGNORE)
    assert not model.lm_head._forward_pre_hooks
    assert torch.equal(model(**{k: data[k] for k in ("input_ids", "attention_mask")}).logits, whole)


def adapted_below_the_head():
    return adapted(target_modules=["q_proj", "down_proj"])


@pytest.mark.parametrize("build", [tied, untied, adapted_below_the_head])
def test_chunked_logits_give_the_same_loss_and_gradients(build, monkeypatch):
    monkeypatch.setitem(token_loss._CHUNK_OF_ALL, "cpu", 4 * VOCABULARY)
    whole, chunked, data = build().eval(), build().eval(), batch()
    chunked.load_state_dict(whole.state_dict())
    chunk_logits(chunked)
    losses = []
    for model in (whole, chunked):
        loss = target_loss_sum(next_token_logits(model, data, IGNORE), next_tokens(data["labels"], IGNORE), IGNORE)
        (loss / 3).backward()
        losses.append(float(loss.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    for (name, one), other in zip(whole.named_parameters(), chunked.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None) == (not one.requires_grad), name
        assert one.grad is None or torch.allclose(one.grad, other.grad, atol=1e-5), name
    assert next_token_logits(chunked, data, IGNORE).dim() == 0
    with whole_logits(chunked):
        assert torch.equal(next_token_logits(chunked, data, IGNORE), next_token_logits(whole, data, IGNORE))
    assert isinstance(chunked.get_output_embeddings(), LossHead)
    inputs = {name: data[name] for name in ("input_ids", "attention_mask")}
    assert torch.equal(chunked(**inputs).logits, whole(**inputs).logits)  # as a generation sees it


def granite():
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return GraniteForCausalLM(GraniteConfig(vocab_size=VOCABULARY, logits_scaling=2.0, **sizes))


def test_a_model_that_scales_its_logits_is_refused_chunks():
    model = granite()
    chunk_logits(model)
    with pytest.raises(ConfigError, match=r"train.logits: .* scales, caps or slices"):
        next_token_logits(model, batch(), IGNORE)
    assert model.lm_head.targets is None and not model.lm_head._forward_hooks


def biased():
    model = untied()
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(VOCABULARY))
    return model


def classifier():
    return LlamaForSequenceClassification(untied().config)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (with_an_adapted_head, "not a plain nn.Linear but peft.tuners.lora.layer.Linear"),
        (with_a_saved_head, "not a plain nn.Linear but peft.utils.other.ModulesToSaveWrapper"),
        (biased, "the output layer has a bias"),
        (classifier, "LlamaForSequenceClassification predicts no tokens"),
    ],
)
def test_another_output_layer_is_refused_chunks(build, said):
    with pytest.raises(ConfigError, match=said):
        chunk_logits(build())
