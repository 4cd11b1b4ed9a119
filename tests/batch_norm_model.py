"""A BERT that normalises batches in place of single positions: code of its own, as people bring it in a folder."""

import json
from pathlib import Path

import torch
from torch import nn

from tests.tiny_models import build_tiny_bert

MODEL = """
from torch import nn
from transformers import BertConfig, BertForSequenceClassification


class BatchNormBertConfig(BertConfig):
    model_type = "batch_norm_bert"


class BatchNorm(nn.BatchNorm1d):
    def forward(self, hidden):
        return super().forward(hidden.transpose(1, 2)).transpose(1, 2)


class BatchNormBert(BertForSequenceClassification):
    config_class = BatchNormBertConfig

    def __init__(self, config):
        super().__init__(config)
        for module in self.modules():
            if hasattr(module, "LayerNorm"):
                module.LayerNorm = BatchNorm(config.hidden_size)
        self.post_init()
"""
AUTO = {
    "AutoConfig": "modeling_batch_norm.BatchNormBertConfig",
    "AutoModelForSequenceClassification": "modeling_batch_norm.BatchNormBert",
}


def build_batch_norm_bert(folder: Path, labels: list[str]) -> Path:
    """Write one of two layers, with statistics as of earlier training, a head for the labels, and a tokenizer."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    build_tiny_bert(folder, weights=False)
    (folder / "modeling_batch_norm.py").write_text(MODEL)
    written = json.loads((folder / "config.json").read_text())
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    config = json.dumps({**written, **names, "model_type": "batch_norm_bert", "auto_map": AUTO})
    (folder / "config.json").write_text(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        read = AutoConfig.from_pretrained(folder, trust_remote_code=True)
        model = AutoModelForSequenceClassification.from_config(read, trust_remote_code=True)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 2)
                module.num_batches_tracked.fill_(7)
        model.save_pretrained(folder)
    (folder / "config.json").write_text(config)
    return folder
