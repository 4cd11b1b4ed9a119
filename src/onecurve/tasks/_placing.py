"""What tasks share that find places in an image: how training images are augmented, and their labels."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from onecurve.content.augmentation import Geometry, draw_flip, draw_jitter, draw_window, whole
from onecurve.tasks.base import Example, Settings

if TYPE_CHECKING:
    from numpy.random import Generator
    from torch import Tensor


class PlacingSettings(Settings):
    scale: list[float] = Field(default=[0.75, 1.5])
    """How large training images appear, at least and at most, as a factor: above 1 a part of the image is seen, below 1
    there is a margin around it, of no label. [1, 1] leaves them whole."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """Share of the training images that are mirrored."""
    jitter: float = Field(default=0.0, ge=0, le=1)
    """How far brightness, contrast and saturation of training images are changed, as a share."""

    @field_validator("scale")
    @classmethod
    def _is_a_range(cls, scale: list[float]) -> list[float]:
        if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
            raise ValueError(f"must be two positive numbers, the smaller first; got {scale}")
        return scale


def augmented(
    image: Any, rng: "Generator", settings: PlacingSettings, training: bool, output: tuple[int, int]
) -> tuple[Any, Geometry]:
    """Return an image in the colours, and where in it lies, what a model is shown; all of it where not in training.

    Args:
        image: Pillow's.
        rng: Drawn from in training.
        settings: How much.
        training: Whether to augment.
        output: Width and height of what is shown.
    """
    if not training:
        return image, Geometry(image.size, whole(image.size), output)
    least, most = settings.scale
    factor = rng.uniform(least, most)
    window = max(1, round(image.width / factor)), max(1, round(image.height / factor))
    crop = draw_window(rng, image.size, window)
    geometry = Geometry(image.size, crop, output, is_mirrored=draw_flip(rng, settings.flip))
    return draw_jitter(rng, *[settings.jitter] * 3).apply(image), geometry


def stacked(examples: Sequence[Example], name: str) -> "Tensor":
    """Return the arrays of examples under one name, which have one shape, as a tensor."""
    import numpy
    import torch

    return torch.from_numpy(numpy.stack([example[name] for example in examples]))


def label_config(labels: Sequence[str]) -> dict[str, Any]:
    """Return what a model's config says of its labels."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {name: index for index, name in enumerate(labels)},
    }
