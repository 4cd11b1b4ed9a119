"""Scores of labelled pixels, from the counts of (right class, predicted class) over a whole split."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy

Counts = list[tuple[int, int, int]]
"""Right class, predicted class, pixels: those pairs that occur."""


def count_pairs(right: "numpy.ndarray", predicted: "numpy.ndarray", num_labels: int) -> Counts:
    """Count the pixels of one image by right and predicted class.

    Args:
        right: int [height, width]; a negative one has no label and is not counted.
        predicted: int [height, width].
        num_labels: Classes.
    """
    import numpy

    labelled = right >= 0
    pairs, counts = numpy.unique(right[labelled] * num_labels + predicted[labelled], return_counts=True)
    return [(*divmod(pair, num_labels), count) for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True)]


def score_pixels(images: Sequence[Counts], names: Sequence[str]) -> dict[str, Any]:
    """Score a split.

    Args:
        images: What `count_pairs` returned of each image; summed, so that large images weigh more, as in PASCAL VOC.
        names: Of the classes, by id.

    Returns:
        pixel_accuracy; mean_iou (intersection over union, Everingham et al., The PASCAL VOC Challenge, 2010) and
        mean_accuracy (recall), each the mean over the classes where it is defined; and by class iou, accuracy and
        pixels (right ones of that class). A class that is neither there nor predicted has no IoU.
    """
    import numpy

    table = numpy.zeros((len(names), len(names)), dtype="int64")
    for image in images:
        for right, predicted, count in image:
            table[right, predicted] += count
    hits, there, found = table.diagonal(), table.sum(1), table.sum(0)
    ious = [_share(*pair) for pair in zip(hits.tolist(), (there + found - hits).tolist(), strict=True)]
    accuracies = [_share(*pair) for pair in zip(hits.tolist(), there.tolist(), strict=True)]
    per_label = {
        name: {"iou": iou, "accuracy": accuracy, "pixels": pixels}
        for name, iou, accuracy, pixels in zip(names, ious, accuracies, there.tolist(), strict=True)
    }
    return {
        "mean_iou": _mean(ious),
        "pixel_accuracy": int(hits.sum()) / int(table.sum()),
        "mean_accuracy": _mean(accuracies),
        "per_label": per_label,
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
