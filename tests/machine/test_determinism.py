"""train.deterministic: torch's switches, and what is said of an operator that has no deterministic kernel."""

import os

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from onecurve.losses.chunked_head import chunk_logits
from onecurve.machine.determinism import compute_deterministically, mistake_of_determinism
from onecurve.model.packing import Packing
from onecurve.run import lifecycle
from onecurve.tasks.base import IGNORE_INDEX
from onecurve.tasks.causal_lm import Task


@pytest.fixture
def deterministic(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is put back
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    before = torch.backends.cudnn.benchmark, torch.utils.deterministic.fill_uninitialized_memory
    compute_deterministically()
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark, torch.utils.deterministic.fill_uninitialized_memory = before


@pytest.mark.usefixtures("deterministic")
def test_an_operator_without_a_deterministic_kernel_ends_the_run_with_its_name():
    assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    with pytest.raises(RuntimeError) as raised:
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    assert "no deterministic kernel here for put_." in str(mistake_of_determinism(raised.value))
    assert mistake_of_determinism(RuntimeError("mat1 and mat2")) is None


@pytest.mark.usefixtures("deterministic")
def test_the_run_ends_as_with_a_setting_that_cannot_be_met(capsys):
    with pytest.raises(RuntimeError) as raised:
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    assert lifecycle._end(lifecycle.Run(), raised.value) == 2
    assert capsys.readouterr().err == (
        "train.py: train.deterministic: torch has no deterministic kernel here for put_. Set it to false.\n"
    )


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("chunked", [False, True])
def test_packing_and_both_losses_take_nothing_that_has_no_deterministic_kernel(chunked):
    """Which operators torch refuses is told on a CPU too, of those that are nondeterministic everywhere."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=61, **sizes))
    if chunked:
        chunk_logits(model)
    Packing(model)
    ids = torch.randint(61, (3, 9))
    mask = (torch.arange(9) < torch.tensor([[9], [4], [6]])).long()
    batch = {"input_ids": ids, "attention_mask": mask, "labels": ids.where(mask.bool(), IGNORE_INDEX)}
    task = Task(Task.Settings())
    task.loss_sum(task.forward(model, batch), batch).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
