"""Models for shapes, small enough to train in a test, written to a folder with no network."""

import json
from pathlib import Path
from typing import Any

NORMALISED = {"do_rescale": True, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def build_tiny_segformer(folder: Path) -> Path:
    """Write a SegFormer that reads 32 x 32 pixels; its head is of as many labels as the config's default."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        **{"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 2]},
        **{"decoder_hidden_size": 16, "num_labels": 4, "classifier_dropout_prob": 0.1},
    )
    size = {"height": 32, "width": 32}
    return _write(folder, SegformerForSemanticSegmentation, config, "SegformerImageProcessor", size)


def build_tiny_detr(folder: Path) -> Path:
    """Write a DETR whose images are at most 64 pixels long."""
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    config = DetrConfig(
        **{"backbone_config": backbone, "d_model": 16, "num_queries": 8, "encoder_layers": 1, "decoder_layers": 2},
        **{"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2},
        **{"num_labels": 3, "auxiliary_loss": True},
    )
    size = {"shortest_edge": 48, "longest_edge": 64}
    return _write(folder, DetrForObjectDetection, config, "DetrImageProcessor", size)


def _write(folder: Path, kind: Any, config: Any, processor: str, size: dict[str, int]) -> Path:
    import torch

    torch.manual_seed(0)
    kind(config).save_pretrained(folder)
    read = {"image_processor_type": processor, "do_resize": True, "size": size, "resample": 2, **NORMALISED}
    (folder / "preprocessor_config.json").write_text(json.dumps(read))
    return folder
