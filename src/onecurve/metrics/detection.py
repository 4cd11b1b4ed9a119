"""Average precision of detected objects, as COCO defines it."""

from collections.abc import Sequence
from typing import Any

Found = tuple[int, float, list[float]]
"""Class, score, and box: x, y, width, height in pixels."""
Right = tuple[int, bool, list[float]]
"""Class, whether it is a crowd, and box."""
MAX_DETECTIONS = 100
"""What COCO scores of an image: its detections of the highest scores."""


def score_detections(images: Sequence[tuple[Sequence[Found], Sequence[Right]]], names: Sequence[str]) -> dict[str, Any]:
    """Score a split with faster-coco-eval, whose numbers are those of pycocotools.

    Args:
        images: The objects found in each image, and those that are there.
        names: Of the classes, by id.

    Returns:
        map: average precision, the mean over the classes and over IoUs from 0.5 to 0.95 (Lin et al., Microsoft COCO,
        2014); map_50 and map_75 at one IoU; and by class ap, ap_50 and objects. None where a class has no object.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    boxes = [(number, *right) for number, (_, rights) in enumerate(images) for right in rights]
    annotations = [
        {
            **{"id": place, "image_id": number, "category_id": label, "bbox": box},
            **{"area": box[2] * box[3], "iscrowd": int(is_crowd)},
        }
        for place, (number, label, is_crowd, box) in enumerate(boxes, 1)  # an id of 0 is taken for none
    ]
    found = [
        {"image_id": number, "category_id": label, "score": score, "bbox": box}
        for number, (detections, _) in enumerate(images)
        for label, score, box in detections
    ]
    support = [sum(label == one and not is_crowd for _, label, is_crowd, _ in boxes) for one in range(len(names))]
    per_label = {
        name: {"ap": None, "ap_50": None, "objects": count} for name, count in zip(names, support, strict=True)
    }
    if not any(support):
        return {"map": None, "map_50": None, "map_75": None, "per_label": per_label}
    right = COCO()
    right.dataset = {
        "images": [{"id": number} for number in range(len(images))],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
        "annotations": annotations,
    }
    right.createIndex()
    precisions = _precisions(COCOeval_faster, right, found, len(names))
    by_iou = [_mean(precisions[at]) for at in (slice(None), slice(0, 1), slice(5, 6))]
    for place, name in enumerate(names):
        if support[place]:
            scores: dict[str, Any] = {"ap": _mean(precisions[..., place]), "ap_50": _mean(precisions[:1, ..., place])}
            per_label[name].update(scores)
    return {"map": by_iou[0], "map_50": by_iou[1], "map_75": by_iou[2], "per_label": per_label}


def _precisions(evaluator: Any, right: Any, found: list[dict[str, Any]], num_labels: int) -> Any:
    """Return precision by IoU, recall and class, of all areas: [10, 101, classes]; -1 where undefined."""
    import numpy

    if not found:  # a list of no detections cannot be loaded
        counts = {annotation["category_id"] for annotation in right.dataset["annotations"] if not annotation["iscrowd"]}
        return numpy.stack([numpy.full((10, 101), 0.0 if n in counts else -1.0) for n in range(num_labels)], -1)
    evaluation = evaluator(right, right.loadRes(found), "bbox", print_function=lambda *told: None)
    evaluation.params.maxDets = [1, 10, MAX_DETECTIONS]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"][:, :, :, 0, -1]


def _mean(precisions: Any) -> float | None:
    known = precisions[precisions > -1]
    return float(known.mean()) if known.size else None
