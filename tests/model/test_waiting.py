"""Forward and backward passes ask the device for no number: the host would wait until all before it is done.

What transformers asks by itself to choose a mask for sdpa, whether anything is padded, is left out: eager asks nothing.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from onecurve.losses.chunked_head import chunk_logits
from onecurve.machine.accelerator import to_device
from onecurve.model.packing import Packing
from onecurve.tasks import causal_lm, find_task, seq2seq_lm
from onecurve.tasks.base import IGNORE_INDEX
from tests.tasks.contract import all_cases, prepare

LLAMA = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}


class Waits(TorchDispatchMode):
    """Names the operators that would have the host wait for a device: their result's size or value is needed here."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator._schema.name.removeprefix("aten::")
        masks = name in ("index", "index_put_") and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in ("nonzero", "_local_scalar_dense", "masked_select", "is_nonzero", "equal") or masks:
            self.names.append(name)
        return operator(*args, **(kwargs or {}))


def batch(device):
    torch.manual_seed(0)
    ids = torch.randint(1, 61, (3, 9))
    mask = (torch.arange(9) < torch.tensor([[9], [4], [6]])).long()
    labels = ids.where(mask.bool() & (ids > 9), IGNORE_INDEX)
    there = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: to_device(tensor, device) for name, tensor in there.items()}


def gradients(model, task, inputs):
    with Waits() as waits:
        loss = task.loss_sum(task.forward(model, inputs), inputs)
        loss.backward()
    return waits.names, float(loss), [p.grad for p in model.parameters()]


def llama(packed, chunked=False):
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=61, attn_implementation="eager", **LLAMA))
    if chunked:
        chunk_logits(model)
    if packed:
        model.set_attn_implementation("sdpa")
        Packing(model)
    return model


@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_of_a_language_model(late_device, packed, chunked):
    task = causal_lm.Task(causal_lm.Task.Settings())
    waits, loss, ours = gradients(llama(packed, chunked), task, batch(late_device.device))
    assert waits == [] and late_device.waits == 0
    plain = llama(False)
    given = {n: t.clone() for n, t in batch(late_device.device).items()}
    logits = plain(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).logits[:, :-1]
    exact = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), given["labels"][:, 1:].flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )
    exact.backward()
    assert loss == pytest.approx(float(exact), rel=1e-5)
    for mine, true in zip(ours, plain.parameters(), strict=True):
        assert float((mine - true.grad).norm() / true.grad.norm()) < 1e-4


def test_of_a_model_with_encoder_and_decoder(late_device):
    torch.manual_seed(1)
    model = T5ForConditionalGeneration(T5Config(vocab_size=61, pad_token_id=0, attn_implementation="eager", **T5))
    task = seq2seq_lm.Task(seq2seq_lm.Task.Settings())
    inputs = batch(late_device.device)
    with Waits() as own:  # T5 asks for two numbers
        ids = model.prepare_decoder_input_ids_from_labels(labels=inputs["labels"])
        model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], decoder_input_ids=ids)
    waits, loss, _ = gradients(model, task, inputs)
    assert waits == own.names and late_device.waits == 0
    assert loss > 1


# A loss that compares examples is computed once a step, of all of them, and not in a pass
@pytest.mark.parametrize(
    "name", sorted(n for n, case in all_cases().items() if not hasattr(find_task(case.task), "pooled"))
)
def test_of_each_task_s_loss(late_device, name, request):
    case = all_cases()[name]
    prepared = prepare(case, request.getfixturevalue(case.model))
    model, task = prepared.model, prepared.task
    plain = prepared.batch()
    sent = {key: to_device(value.clone(), late_device.device) for key, value in plain.items()}
    outputs = task.forward(model, sent)
    late_device.waits = 0
    with Waits() as waits:
        losses = task.loss_sum(outputs, sent)
        losses.sum().backward()
    assert waits.names == [] and late_device.waits == 0
    assert torch.allclose(losses, task.loss_sum(task.forward(model, plain), plain))
