"""What a model reads of an image: its size, and its pixels as the model's processor makes them."""

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from onecurve.errors import ConfigError

if TYPE_CHECKING:
    import numpy
    from PIL import Image

_TALL, _WIDE = (30, 60), (60, 30)


@lru_cache(maxsize=4)
def size_read(processor: Any) -> tuple[int, int]:
    """Return the (width, height) that a processor gives every image, found by giving it a tall and a wide one.

    Raises:
        ConfigError: They come out with different sizes, which could not be stacked to a batch, or it has no pixels.
    """
    from PIL import Image

    shapes = set()
    for size in (_TALL, _WIDE):
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


def pixel_values(image: "Image.Image", processor: Any, is_sized: bool = False) -> "numpy.ndarray":
    """Return an RGB image as the model reads it: float32 [channels, height, width].

    Args:
        image: Of any size.
        processor: A transformers image processor.
        is_sized: Whether the image has its final size: then it is neither resized, cropped nor padded.
    """
    import numpy

    kept = {"do_resize": False, "do_center_crop": False, "do_pad": False} if is_sized else {}
    found = processor(images=image, return_tensors="np", **kept)
    return numpy.asarray(found["pixel_values"][0], dtype="float32")
