"""What layers keep for the backward pass: the same gradients, from less memory that is really taken."""

import gc
import json
import weakref

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from onecurve.adapters import add_adapter
from onecurve.config import PeftSection
from onecurve.errors import ConfigError
from onecurve.model.activations import keep_activations
from onecurve.model.packing import Packing

LORA = PeftSection(method="lora", r=4, lora_dropout=0.1, target_modules="all-linear")
LESS = ["recompute", "selective", "offload"]
SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}


def llama(what, peft=None, packed=False, dropout=0.1):
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=61, num_key_value_heads=2, attention_dropout=dropout, **SIZES)
    base = LlamaForCausalLM(config)
    base.enable_input_require_grads = lambda: None  # as `load_model` does
    keep_activations(base, what)
    torch.manual_seed(1)
    model = add_adapter(base, peft, task_type="CAUSAL_LM", new_modules=[])
    if packed:
        Packing(base)
    return model.train()


def bert(what):
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=61, **SIZES))
    keep_activations(model, what)
    return model.train()


def batch(length=17):
    torch.manual_seed(2)
    mask = torch.ones(3, length, dtype=torch.long)
    mask[1, 5:] = mask[2, 11:] = 0
    return {"input_ids": torch.randint(1, 61, mask.shape), "attention_mask": mask}


def gradients(model, inputs):
    torch.manual_seed(3)
    model(**inputs).logits.square().sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in found.values())
    return found


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("peft", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("what", LESS)
def test_gradients_are_the_same_bit_for_bit_also_with_dropout(what, peft, packed):
    kept, ours = (gradients(llama(w, peft, packed), batch()) for w in ("keep", what))
    assert max(float(gradient.abs().max()) for gradient in kept.values()) > 1e-3
    assert all(torch.equal(ours[name], kept[name]) for name in kept)


@pytest.mark.parametrize("what", LESS)
def test_encoders_too(what):
    kept, ours = (gradients(bert(w), batch()) for w in ("keep", what))
    assert all(torch.equal(ours[name], kept[name]) for name in kept)


def peak(model, inputs, folder):
    """Return the most bytes that torch's CPU allocator gave out at once beyond what there was."""
    gradients(model, inputs)  # so that gradients are there already
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        gradients(model, inputs)
    measured.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    at, most = 0, 0
    for event in sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"]):
        at += event["args"]["Bytes"]
        most = max(most, at)
    return most


@pytest.mark.parametrize("peft", [None, LORA], ids=["full", "lora"])
def test_less_memory_is_taken(peft, tmp_path):
    inputs = {"input_ids": torch.randint(1, 61, (4, 128))}
    peaks = {
        what: peak(llama(what, peft, dropout=0.0), inputs, tmp_path) for what in ("keep", "recompute", "selective")
    }
    print({what: f"{taken / 2**20:.1f} MiB" for what, taken in peaks.items()})
    assert peaks["recompute"] < 0.6 * peaks["keep"]
    assert peaks["recompute"] < peaks["selective"] < 0.8 * peaks["keep"]


class Counting(TorchDispatchMode):
    """Counts what is really computed: what a checkpoint's own modes answer from memory never comes here."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.names.append(operator._schema.name)
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("peft", [None, LORA], ids=["full", "lora"])
def test_selective_computes_no_large_product_and_no_attention_again(peft):
    counts = {}
    for what in ("keep", "selective", "recompute"):
        model = llama(what, peft, dropout=0.0)
        with Counting() as counting:
            gradients(model, {"input_ids": batch()["input_ids"]})
        attention = counting.names.count("aten::_scaled_dot_product_flash_attention_for_cpu")
        counts[what] = counting.names.count("aten::mm"), attention
    short = 0 if peft is None else 3 * 6  # LoRA's second product in each linear of a layer but the last
    assert counts["selective"] == (counts["keep"][0] + short, counts["keep"][1])
    assert counts["recompute"][1] == 2 * counts["keep"][1] == 6
    assert counts["recompute"][0] > counts["selective"][0]


@pytest.mark.parametrize(("what", "stays"), [("recompute", True), ("offload", False)])
def test_of_an_offloaded_layer_nothing_stays_but_the_copy(late_device, what, stays):
    model, inputs = llama(what), []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda _, args: inputs.append(weakref.ref(args[0])))
    output = model(**batch()).logits
    late_device.synchronize()
    assert [tensor() is not None for tensor in inputs] == [stays] * 3
    output.sum().backward()


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("peft", [None, LORA], ids=["full", "lora"])
def test_beside_a_device_offloaded_activations_are_copied_late_and_come_back_whole(late_device, peft, packed):
    kept = gradients(llama("keep", peft, packed), batch())
    model = llama("offload", peft, packed)
    for _ in range(2):  # the second pass meets memory that the first one used
        model.zero_grad(set_to_none=True)
        ours = gradients(model, batch())
        assert all(torch.equal(ours[name], kept[name]) for name in kept)
    assert late_device.waits == 0  # the host waits for nothing
    assert late_device.ahead == 1


def test_a_pass_whose_backward_never_comes_leaves_nothing_on_the_host(late_device):
    model = llama("offload")
    model(**batch())
    ours = gradients(model, batch())
    kept = gradients(llama("keep"), batch())
    assert all(torch.equal(ours[name], kept[name]) for name in kept)
    del ours, kept
    late_device.synchronize()
    late_device.queue.clear()
    gc.collect()
    assert late_device.locked == {}


def test_a_model_that_cannot_is_refused():
    model = bert("keep")
    type(model).supports_gradient_checkpointing, before = False, type(model).supports_gradient_checkpointing
    try:
        with pytest.raises(ConfigError, match=r"train.activations: recompute: Bert.* does not support"):
            keep_activations(model, "recompute")
    finally:
        type(model).supports_gradient_checkpointing = before
