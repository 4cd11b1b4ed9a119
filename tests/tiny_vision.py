"""Vision models small enough to train in a test, with the image processors that come with their kind."""

from pathlib import Path
from typing import Any

from onecurve.content.media import media_digest

SIZE = 32
"""Height and width of what each reads."""
_TRANSFORMER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": 8,
}
_DROPS = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
CONFIGS: dict[str, dict[str, Any]] = {
    "vit": _TRANSFORMER | _DROPS,
    "deit": _TRANSFORMER | _DROPS,
    "beit": _TRANSFORMER | {"drop_path_rate": 0.2, "use_relative_position_bias": True},
    "swin": {
        "image_size": SIZE,
        "patch_size": 2,
        "embed_dim": 16,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 4,
    },
    "convnext": {"depths": [1, 1], "hidden_sizes": [16, 32], "num_stages": 2, "drop_path_rate": 0.2},
    "resnet": {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"},
}
"""Model type -> what its config says beyond the defaults."""


def processor(kind: str, size: int = SIZE) -> Any:
    """Return the image processor that comes with a model type, for images of this size."""
    from transformers import (
        BeitImageProcessorPil,
        ConvNextImageProcessorPil,
        DeiTImageProcessorPil,
        ViTImageProcessorPil,
    )

    square = {"height": size, "width": size}
    if kind in ("convnext", "resnet"):
        return ConvNextImageProcessorPil(size={"shortest_edge": size}, crop_pct=0.875)
    if kind == "deit":
        return DeiTImageProcessorPil(size={"height": size + 8, "width": size + 8}, crop_size=square)
    return (BeitImageProcessorPil if kind == "beit" else ViTImageProcessorPil)(size=square)


def build_tiny_vision(folder: Path, kind: str = "vit", *, weights: bool = True, seed: int = 0, **config: Any) -> Path:
    """Write a model's config, its image processor and, drawn from a seed, its weights without a head."""
    import torch
    from transformers import AutoConfig, AutoModel

    folder.mkdir(parents=True, exist_ok=True)
    processor(kind).save_pretrained(folder)
    made = AutoConfig.for_model(kind, **(CONFIGS[kind] | config))
    if not weights:
        made.save_pretrained(folder)
        return folder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        AutoModel.from_config(made).save_pretrained(folder)
    return folder


def media(path: Path) -> dict[str, str]:
    """Return a file as a row names it."""
    return {"path": str(path), "digest": media_digest(path.read_bytes())}


IMAGES = [media(path) for path in sorted((Path(__file__).parent / "media").glob("blocks-*.png"))]
"""Four images of 16 colours each, of different sizes and proportions."""
