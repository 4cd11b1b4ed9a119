"""Segmentation masks: decoding them, the class of each pixel, and a mask as plain numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from onecurve.errors import BadRow

if TYPE_CHECKING:
    import numpy

UNLABELLED = -100
"""Class of a pixel that takes no part in the loss and the scores; PyTorch's `ignore_index`."""
_ONE_CHANNEL = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N")


def decode_mask(data: bytes, name: str = "mask") -> "numpy.ndarray":
    """Return the values of a mask's pixels: int32 [height, width].

    Those of a palette are its indices, not its colours.

    Raises:
        BadRow: No image, a damaged one, one in colours, or one whose compression changes values.
    """
    import numpy
    from PIL import Image

    try:
        with Image.open(BytesIO(data), formats=("PNG", "TIFF", "BMP", "GIF", "PPM", "JPEG", "WEBP")) as image:
            image.load()
            if image.mode not in _ONE_CHANNEL or image.format in ("JPEG", "WEBP"):
                raise BadRow(
                    f"{name} is a {image.format} image of mode {image.mode}; it must be a PNG of one channel, grey (8 "
                    "or 16 bits) or with a palette, whose pixels are the numbers of classes"
                )
            return numpy.asarray(image).astype("int32")
    except Image.DecompressionBombError:
        raise BadRow(f"{name} has too many pixels to be decoded safely") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise BadRow(f"{name} is not an image that can be read: {error}") from None


@dataclass(frozen=True)
class PixelClasses:
    """Which class each value of a mask stands for."""

    ids: Mapping[int, int]
    """Value -> the class's id."""
    ignored: frozenset[int]
    """Values of pixels without a label."""

    @classmethod
    def of(cls, num_labels: int, values: list[int] | None, ignore_index: int | None, reduce: bool) -> "PixelClasses":
        """Read what values mean.

        Args:
            num_labels: Classes.
            values: The value of each; None: the id, or with `reduce` the id and one.
            ignore_index: The value of pixels without a label.
            reduce: Whether 0 has no label and 1 is the first class, as `do_reduce_labels` of transformers' processors.
        """
        known = values if values is not None else list(range(int(reduce), num_labels + int(reduce)))
        ignored = {ignore_index} if ignore_index is not None else set()
        return cls(
            {value: number for number, value in enumerate(known)}, frozenset(ignored | ({0} if reduce else set()))
        )

    def read(self, mask: "numpy.ndarray") -> "numpy.ndarray":
        """Return the class of each pixel, `UNLABELLED` where there is none: int64 [height, width].

        Raises:
            BadRow: A value that is no class's, or no pixel with a label.
        """
        import numpy

        found, places = numpy.unique(mask, return_inverse=True)
        for value in found.tolist():
            if value not in self.ids and value not in self.ignored:
                row, column = (int(place[0]) for place in numpy.nonzero(mask == value))
                known, ignored = _ranges(sorted(self.ids)), _ranges(sorted(self.ignored)) or "none"
                raise BadRow(
                    f"mask has the value {value} (first at row {row}, column {column}), which no label has; the labels "
                    f"have {known}, and {ignored} is ignored"
                )
        classes = [UNLABELLED if value in self.ignored else self.ids[value] for value in found.tolist()]
        if set(classes) == {UNLABELLED}:
            raise BadRow("mask has no pixel with a label: all are ignored")
        return numpy.asarray(classes, "int64")[places.reshape(mask.shape)]


def _ranges(values: list[int]) -> str:
    """Name sorted numbers briefly, as in 0 to 3, 7."""
    parts: list[list[int]] = []
    for value in values:
        if parts and value == parts[-1][-1] + 1:
            parts[-1].append(value)
        else:
            parts.append([value])
    return ", ".join(f"{part[0]} to {part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def run_lengths(mask: "numpy.ndarray") -> dict[str, Any]:
    """Return a binary mask as COCO's uncompressed run-length encoding, which pycocotools reads.

    Args:
        mask: bool [height, width].

    Returns:
        size: [height, width]; counts: the lengths of runs, zeros first, down the columns from left to right.
    """
    import numpy

    flat = mask.ravel(order="F")
    changes = (numpy.flatnonzero(flat[1:] != flat[:-1]) + 1).tolist()
    ends = [*changes, flat.size]
    counts = [end - start for start, end in zip([0, *changes], ends, strict=True)]
    return {"size": list(mask.shape), "counts": [0, *counts] if flat.size and flat[0] else counts}
