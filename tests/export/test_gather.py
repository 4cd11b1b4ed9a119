"""What is exported crosses from the device once."""

from collections import Counter

import pytest
import torch
from accelerate import Accelerator
from transformers import BertConfig, BertForMaskedLM

from onecurve.export.model_folder import _gather
from onecurve.strategies.plain import Plain


def test_each_weight_is_copied_from_the_device_once(monkeypatch):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertForMaskedLM(BertConfig(vocab_size=31, **sizes))
    model.register_buffer("moved", torch.ones(3))
    strategy = Plain(Accelerator(cpu=True), "no", 0.0)
    strategy.prepare(model, torch.optim.SGD(model.parameters(), 0.1), 1)
    copied, cpu, to = Counter(), torch.Tensor.cpu, torch.Tensor.to

    def noted(copy):
        def of(tensor, *args, **kwargs):
            copied[tensor.data_ptr()] += 1
            return copy(tensor, *args, **kwargs)

        return of

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "cpu", noted(cpu))
        patch.setattr(torch.Tensor, "to", noted(to))
        values = _gather(strategy, strategy.accelerator, adapter=False)
    state = model.state_dict()
    assert list(values) == list(state)
    assert all(torch.equal(values[name], value) for name, value in state.items())
    assert set(copied.values()) == {1}
    # What is tied stays one tensor, so that it is written once
    assert values["cls.predictions.decoder.weight"] is values["bert.embeddings.word_embeddings.weight"]
