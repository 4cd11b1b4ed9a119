"""Every strategy starts from the same weights, a head that the checkpoint does not have included."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from .head_ranks import load, values

SIZES = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}


def checkpoint(kind, folder):
    """A masked language model, a classifier with other labels, or a decoder."""
    torch.manual_seed(1)
    if kind == "no head":
        model = BertForMaskedLM(BertConfig(**SIZES))
    elif kind == "other labels":
        model = BertForSequenceClassification(BertConfig(**SIZES, num_labels=5))
    else:
        model = LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2, pad_token_id=0))
    model.save_pretrained(folder)


@pytest.mark.distributed
@pytest.mark.parametrize("kind", [pytest.param("no head", marks=pytest.mark.slow), "other labels", "decoder"])
def test_zero_3_starts_where_one_process_does(forks, tmp_path, kind):
    checkpoint(kind, tmp_path)
    wanted = values(load(str(tmp_path)))
    ended = forks.run_script("tests.strategies.head_ranks", "zero3", str(tmp_path), str(tmp_path))
    assert ended.exit_code == 0, ended.stderr[-4000:]
    for rank in (0, 1):
        found = load_file(tmp_path / f"rank-{rank}.safetensors")
        assert found.keys() == wanted.keys()
        assert [name for name, value in wanted.items() if not torch.equal(value, found[name])] == []
