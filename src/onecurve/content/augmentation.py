"""Changes to a training image: drawn first, as plain parameters, then applied to the image, its mask and its boxes.

Everything is drawn from the generator that is given, and from nothing else. Sizes are (width, height) in pixels; boxes
are (left, top, right, bottom) in pixels, edges, so that the whole of an image is (0, 0, width, height).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy
from numpy.random import Generator
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

Size = tuple[int, int]
"""Width, height."""
Box = tuple[int, int, int, int]
"""Left, top, right, bottom."""
Range = tuple[float, float]
_TRIES = 10
_HUES = 256


@dataclass(frozen=True)
class Geometry:
    """Where an augmented image lies in the original: rotated about the centre, cropped, resized, then flipped."""

    size: Size
    """The original's."""
    crop: Box
    """In the rotated original, whose size is the original's. What lies outside of it is filled."""
    output: Size
    """The augmented image's."""
    angle: float = 0.0
    """Degrees, counter-clockwise."""
    is_mirrored: bool = False
    """Left and right change places."""
    is_upside_down: bool = False
    """Top and bottom change places."""

    def image(self, image: "Image.Image", resample: int, fill: tuple[int, ...] | int = 0) -> "Image.Image":
        """Apply to a Pillow image.

        Args:
            image: Of size `size`.
            resample: Pillow's filter for the resize; bilinear for the rotation.
            fill: Colour of what lies outside of the original.
        """
        from PIL.Image import Resampling

        return self._apply(image, resample, Resampling.BILINEAR, fill)

    def mask(self, mask: "Image.Image", fill: int) -> "Image.Image":
        """Apply to a mask, an image whose values are classes: to the nearest pixel, and `fill` outside of it."""
        from PIL.Image import Resampling

        return self._apply(mask, Resampling.NEAREST, Resampling.NEAREST, fill)

    def boxes(self, boxes: Any) -> tuple[NDArray[numpy.float64], NDArray[numpy.float64]]:
        """Apply to boxes.

        Args:
            boxes: [n, 4] in pixels of the original.

        Returns:
            The boxes in pixels of the augmented image, clipped to it, [n, 4] (after a rotation the upright boxes around
            the rotated ones); and the share of each one's area that is inside, [n], zero where nothing is.
        """
        found = numpy.asarray(boxes, dtype=numpy.float64).reshape(-1, 4)
        if self.angle:
            found = _around_rotated(found, self.size, self.angle)
        left, top, right, bottom = self.crop
        scale = numpy.array([self.output[0] / (right - left), self.output[1] / (bottom - top)])
        found = (found - numpy.tile([left, top], 2)) * numpy.tile(scale, 2)
        clipped = numpy.clip(found, 0, numpy.tile(self.output, 2))
        areas, inside = _areas(found), _areas(clipped)
        shares = numpy.divide(inside, areas, out=numpy.zeros_like(inside), where=areas > 0)
        width, height = self.output
        if self.is_mirrored:
            clipped = numpy.stack([width - clipped[:, 2], clipped[:, 1], width - clipped[:, 0], clipped[:, 3]], 1)
        if self.is_upside_down:
            clipped = numpy.stack([clipped[:, 0], height - clipped[:, 3], clipped[:, 2], height - clipped[:, 1]], 1)
        return clipped, shares

    def _apply(self, image: Any, resample: int, rotation: int, fill: Any) -> Any:
        from PIL.Image import Transpose

        assert image.size == self.size, f"an image of {image.size} for a geometry of {self.size}"
        if self.angle:
            image = image.rotate(self.angle, rotation, fillcolor=fill)
        image = _cropped(image, self.crop, fill)
        if image.size != self.output:
            image = image.resize(self.output, resample)
        if self.is_mirrored:
            image = image.transpose(Transpose.FLIP_LEFT_RIGHT)
        return image.transpose(Transpose.FLIP_TOP_BOTTOM) if self.is_upside_down else image


@dataclass(frozen=True)
class Jitter:
    """A change of colours, as torchvision's ColorJitter defines it: these steps, one after another."""

    steps: Sequence[tuple[str, float]] = field(default_factory=list)
    """`brightness`, `contrast` or `saturation` with its factor, 1 the original; `hue` with its turn, 0 the original."""

    def apply(self, image: "Image.Image") -> "Image.Image":
        """Return an RGB image in other colours."""
        from PIL import ImageEnhance

        changes = {
            "brightness": ImageEnhance.Brightness,
            "contrast": ImageEnhance.Contrast,
            "saturation": ImageEnhance.Color,
        }
        for name, amount in self.steps:
            image = _turned_hue(image, amount) if name == "hue" else changes[name](image).enhance(amount)
        return image


def draw_crop(rng: Generator, size: Size, scale: Range = (0.08, 1.0), ratio: Range = (3 / 4, 4 / 3)) -> Box:
    """Draw the part of an image that a random resized crop takes (Szegedy et al., 2014, as torchvision defines it).

    Args:
        rng: Drawn from.
        size: The image's.
        scale: Smallest and largest share of its area.
        ratio: Smallest and largest width over height, uniform in its logarithm.

    Returns:
        The box; in the middle and as large as the ratio lets it where ten draws do not fit into the image.
    """
    width, height = size
    for _ in range(_TRIES):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < high <= height:
            return draw_window(rng, size, (wide, high))
    aspect = min(max(width / height, ratio[0]), ratio[1])
    wide, high = min(width, round(height * aspect)), min(height, round(width / aspect))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def draw_window(rng: Generator, size: Size, window: Size) -> Box:
    """Draw where a window of a fixed size lies in an image; around a side that is shorter than the window's."""
    (left, right), (top, bottom) = (_span(rng, total, wanted) for total, wanted in zip(size, window, strict=True))
    return left, top, right, bottom


def draw_flip(rng: Generator, probability: float) -> bool:
    """Draw whether to flip. One number is drawn whatever the probability."""
    return bool(rng.random() < probability)


def draw_angle(rng: Generator, degrees: float) -> float:
    """Draw an angle of rotation between -degrees and degrees."""
    return float(rng.uniform(-degrees, degrees))


def draw_jitter(
    rng: Generator, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0
) -> Jitter:
    """Draw a change of colours, its steps in random order.

    Args:
        rng: Drawn from.
        brightness: The factor lies between max(0, 1 - brightness) and 1 + brightness.
        contrast: Likewise.
        saturation: Likewise.
        hue: The turn lies between -hue and hue, 0.5 at most, half the circle of colours.
    """
    factors = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    steps = [(name, float(rng.uniform(max(0.0, 1 - by), 1 + by))) for name, by in factors.items() if by]
    steps += [("hue", float(rng.uniform(-hue, hue)))] if hue else []
    return Jitter([steps[place] for place in rng.permutation(len(steps))])


def draw_erased(rng: Generator, size: Size, scale: Range = (0.02, 0.33), ratio: Range = (0.3, 3.3)) -> Box | None:
    """Draw the rectangle that random erasing blanks (Zhong et al., 2017, as torchvision defines it).

    Args:
        rng: Drawn from.
        size: The image's.
        scale: Smallest and largest share of its area.
        ratio: Smallest and largest height over width, uniform in its logarithm.

    Returns:
        The box; None where ten draws do not fit into the image.
    """
    width, height = size
    for _ in range(_TRIES):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        wide, high = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < wide < width and 0 < high < height:
            return draw_window(rng, size, (wide, high))
    return None


def erase(pixels: NDArray[Any], box: Box, value: float = 0.0) -> NDArray[Any]:
    """Return [channels, height, width] with a box of it set to a value: 0 is the mean colour once normalised."""
    left, top, right, bottom = box
    erased = pixels.copy()
    erased[:, top:bottom, left:right] = value
    return erased


def whole(size: Size) -> Box:
    """Return the box of an entire image."""
    return 0, 0, *size


def _span(rng: Generator, total: int, wanted: int) -> tuple[int, int]:
    low, high = min(0, total - wanted), max(0, total - wanted)
    start = int(rng.integers(low, high + 1))
    return start, start + wanted


def _cropped(image: Any, box: Box, fill: Any) -> Any:
    from PIL import Image

    if box == whole(image.size):
        return image
    left, top, right, bottom = box
    if left >= 0 and top >= 0 and right <= image.size[0] and bottom <= image.size[1]:
        return image.crop(box)
    canvas = Image.new(image.mode, (right - left, bottom - top), fill)
    canvas.paste(image, (-left, -top))
    return canvas


def _turned_hue(image: Any, turn: float) -> Any:
    from PIL import Image

    hue, saturation, value = image.convert("HSV").split()
    turned = (numpy.asarray(hue).astype(numpy.int16) + int(turn * (_HUES - 1))) % _HUES
    return Image.merge("HSV", (Image.fromarray(turned.astype(numpy.uint8)), saturation, value)).convert("RGB")


def _around_rotated(boxes: NDArray[Any], size: Size, angle: float) -> NDArray[Any]:
    """Return the upright boxes around boxes that are rotated counter-clockwise, as seen, about the image's centre."""
    centre = numpy.array(size) / 2
    corners = boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]] - centre  # [n, 4, 2]; y points down
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    turned = corners @ numpy.array([[cosine, -sine], [sine, cosine]]) + centre
    return numpy.concatenate([turned.min(1), turned.max(1)], 1)


def _areas(boxes: NDArray[Any]) -> NDArray[Any]:
    return numpy.prod(numpy.maximum(boxes[:, 2:] - boxes[:, :2], 0), 1)
