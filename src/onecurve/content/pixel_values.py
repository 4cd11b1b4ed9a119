"""What a model reads of an image: its size, and the pixels rescaled and normalised as its processor says."""

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from onecurve.errors import ConfigError

if TYPE_CHECKING:
    import numpy
    from PIL import Image

_PROBES = (30, 60), (60, 30)


def pixel_values(image: "Image.Image", processor: Any) -> "numpy.ndarray":
    """Return an image that has its final size as the model reads it: float32 [channels, height, width]."""
    import numpy

    found = processor(images=image, do_resize=False, do_center_crop=False, do_pad=False, return_tensors="np")
    return numpy.asarray(found["pixel_values"][0], dtype="float32")


def processed(image: "Image.Image", processor: Any) -> "numpy.ndarray":
    """Return an RGB image of any size just as its processor makes it: float32 [channels, height, width]."""
    import numpy

    return numpy.asarray(processor(images=image, return_tensors="np")["pixel_values"][0], dtype="float32")


@lru_cache(maxsize=4)
def size_made(processor: Any) -> tuple[int, int]:
    """Return the (width, height) that a processor gives every image, found by giving it a tall and a wide one.

    Raises:
        ConfigError: They come out with different sizes, which could not be stacked, or not as one array of pixels.
    """
    from PIL import Image

    shapes = set()
    for size in _PROBES:
        found = processor(images=Image.new("RGB", size), return_tensors="np")
        if "pixel_values" not in found or found["pixel_values"].ndim != 4:
            raise ConfigError(
                f"its processor, {type(processor).__name__}, does not make one array of pixels of an image.",
                where="model.path",
                fix="Use another model for this task.",
            )
        shapes.add(found["pixel_values"].shape[2:])
    if len(shapes) > 1:
        raise ConfigError(
            "its processor does not give all images one size; it has "
            f"do_resize: {processor.do_resize}, size: {dict(processor.size or {})}.",
            where="model.path",
            fix='Set "do_resize": true and "size": {"height": 224, "width": 224}, or another size, in its '
            "preprocessor_config.json, or name a folder with one in model.tokenizer.",
        )
    ((height, width),) = shapes
    return width, height
