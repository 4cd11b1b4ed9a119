"""The sizes in which a model that finds places in images reads them: all of an image, resized as its processor says."""

from typing import TYPE_CHECKING, Any

from onecurve.errors import ConfigError

if TYPE_CHECKING:
    import numpy


def size_read(processor: Any) -> tuple[int, int]:
    """Return the (width, height) that every image is resized to: with several sizes a batch could not be stacked.

    Raises:
        ConfigError: The processor keeps each image's own proportions, or does not resize.
    """
    size = processor.size
    if getattr(processor, "do_center_crop", False) and processor.crop_size:
        size = processor.crop_size  # what is cut away elsewhere would have neither prediction nor score
    if getattr(processor, "do_resize", True) and size and size["height"] and size["width"]:
        return size["width"], size["height"]
    raise ConfigError(
        f"its processor does not resize images to one size; it has size: {dict(size or {})}.",
        where="model.path",
        fix='Set "size": {"height": 512, "width": 512} in its preprocessor_config.json, or name a folder with one '
        "in model.tokenizer.",
    )


def sizes_read(processor: Any, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the (width, height) that an image is resized to, and that of the canvas which it is the upper left of.

    A processor that keeps proportions (DETR's) makes the shorter side `shortest_edge`, and the longer one at most
    `longest_edge`. The canvas is a square of that, the same for every image, so that what a model makes of one does
    not depend on which others it is padded with.

    Raises:
        ConfigError: The processor does not resize.
    """
    edges = processor.size or {}
    shortest, longest = edges.get("shortest_edge"), edges.get("longest_edge")
    if not (shortest and longest and getattr(processor, "do_resize", True)):
        fixed = size_read(processor)
        return fixed, fixed
    scale = min(shortest / min(size), longest / max(size))
    return (max(1, round(size[0] * scale)), max(1, round(size[1] * scale))), (longest, longest)


def on_canvas(pixels: "numpy.ndarray", canvas: tuple[int, int]) -> tuple["numpy.ndarray", "numpy.ndarray"]:
    """Return pixel values with zeros to their right and below; and a mask, int64 [height, width], of what is image."""
    import numpy

    channels, height, width = pixels.shape
    padded, mask = numpy.zeros((channels, canvas[1], canvas[0]), pixels.dtype), numpy.zeros(canvas[::-1], "int64")
    padded[:, :height, :width] = pixels
    mask[:height, :width] = 1
    return padded, mask
