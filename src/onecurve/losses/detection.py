"""The losses of object detection as sums of single images, which no other image of the batch changes.

transformers computes them over a micro-batch, each divided by what it finds there: the boxes, or for DETR's
classification the weights of all queries (a weighted mean), averaged over ranks by a collective. Here its own criteria
are given one image at a time and a divisor of one; the divisor is the global batch's.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

Target = dict[str, "Tensor"]
"""Of one image: class_labels, int64 [boxes], and boxes, float32 [boxes, 4]: centre x, centre y, width and height as
shares of the image."""
UNITS = 1000
"""A weighted mean is over weights such as 0.1; counts are whole numbers, so that they are of thousandths."""
_MAX_DETECTIONS = 100
_WEIGHTED = "ForObjectDetectionLoss"
_LAYERS_OF_RT_DETR = "RTDetrForObjectDetectionLoss"
CRITERIA = {
    "detr": _WEIGHTED,
    "table-transformer": _WEIGHTED,
    "yolos": _WEIGHTED,
    "conditional_detr": "DeformableDetrForObjectDetectionLoss",
    "deformable_detr": "DeformableDetrForObjectDetectionLoss",
    "rt_detr": _LAYERS_OF_RT_DETR,
    "rt_detr_v2": _LAYERS_OF_RT_DETR,
}
"""Model type -> the function of transformers that computes its loss."""


def has_background_class(config: Any) -> bool:
    """Whether a model's queries have one class more, for no object, and a softmax over all; else a sigmoid each."""
    return CRITERIA[config.model_type] == _WEIGHTED


def count_items(config: Any, num_boxes: int) -> list[int]:
    """Return what the sums of an image are divided by: of `boxes`, and of `classes`.

    Boxes; for a weighted mean over queries thousandths of their weights, which are 1 for each query that a box is
    matched to and `eos_coefficient` for the others.
    """
    return [num_boxes, round(UNITS * _query_weights(config, num_boxes)) if has_background_class(config) else num_boxes]


def layers_of(config: Any, outputs: Any, auxiliary: "tuple[Tensor, Tensor] | None") -> "list[tuple[Tensor, Tensor]]":
    """Return the logits, [images, queries, classes], and boxes, [images, queries, 4], of each layer that is learnt.

    Args:
        config: The model's.
        outputs: What it returned.
        auxiliary: Logits and boxes of all layers, [layers, images, ...], where the model tells them to its loss alone.
    """
    layers = [(outputs.logits, outputs.pred_boxes)]
    if CRITERIA[config.model_type] == _LAYERS_OF_RT_DETR and config.auxiliary_loss:
        inner = outputs.intermediate_logits[:, :-1], outputs.intermediate_reference_points[:, :-1]
        layers += zip(*(tensor.unbind(1) for tensor in inner), strict=True)
        layers.append((outputs.enc_topk_logits, outputs.enc_topk_bboxes))
    elif auxiliary is not None:
        layers += zip(*(tensor[:-1].unbind() for tensor in auxiliary), strict=True)
    return layers


def detector_in(model: "nn.Module") -> Any:
    """Return transformers' model within what a strategy or PEFT wraps it in."""
    return next(module for module in model.modules() if type(module).__name__.endswith("ForObjectDetection"))


def call_with_layers(model: Any, detector: Any, inputs: "dict[str, Tensor]", learns: bool) -> tuple[Any, Any]:
    """Call a model; return also logits and boxes of all its layers, where it makes them for its loss alone."""
    config = detector.config
    if not (learns and getattr(config, "auxiliary_loss", False)) or config.model_type.startswith("rt_detr"):
        return model(**inputs), None
    seen: list[Any] = []

    def loss_function(logits: Any, labels: Any, device: Any, boxes: Any, config: Any, *layers: Any) -> Any:
        seen.append(layers)
        return None, {}, None

    before, detector.loss_function = detector.loss_function, loss_function
    try:
        return model(**inputs, labels=[]), seen[0]
    finally:
        detector.loss_function = before


def image_losses(config: Any, layers: "Sequence[tuple[Tensor, Tensor]]", targets: Sequence[Target]) -> "Tensor":
    """Return the sums of each image over its layers: those of its boxes (L1 and GIoU), and of its queries' classes.

    Args:
        config: The model's; has the weights of the losses and of the matching.
        layers: As `layers_of` returns them.
        targets: One for each image.

    Returns:
        float32 [images, 2]; of classes in thousandths where `count_items` counts those.
    """
    import torch

    device = layers[0][0].device
    criterion, names, weights = _criterion(config)
    layers = [(_precise(logits), _precise(boxes)) for logits, boxes in layers]
    criterion.to(device, layers[0][0].dtype)
    rows = []
    for number, whole in enumerate(targets):
        target = whole | {"boxes": whole["boxes"].to(layers[0][1].dtype)}
        sums = {"boxes": torch.zeros((), device=device), "classes": torch.zeros((), device=device)}
        scale = UNITS * _query_weights(config, len(target["boxes"])) if has_background_class(config) else 1.0
        for logits, boxes in layers:
            one = {"logits": logits[number : number + 1], "pred_boxes": boxes[number : number + 1]}
            # The matchers cannot reshape a matrix of costs that has no column
            indices = criterion.matcher(one, [target]) if len(target["boxes"]) else [(_none(), _none())]
            parts: dict[str, Tensor] = {}
            for name in names:
                parts |= criterion.get_loss(name, one, [target], indices, 1.0)
            for name, value in parts.items():
                is_of_boxes = name in ("loss_bbox", "loss_giou")
                sums["boxes" if is_of_boxes else "classes"] += weights[name] * value * (1.0 if is_of_boxes else scale)
        rows.append(torch.stack(list(sums.values())))
    return torch.stack(rows)


def _precise(tensor: "Tensor") -> "Tensor":
    """Return bfloat16 and float16 as float32: the costs of a matching lie close together."""
    return tensor.float() if tensor.element_size() < 4 else tensor


def _none() -> "Tensor":
    import torch

    return torch.zeros(0, dtype=torch.int64)


def _query_weights(config: Any, num_boxes: int) -> float:
    queries = getattr(config, "num_queries", None) or config.num_detection_tokens
    matched = min(num_boxes, queries)
    return config.eos_coefficient * (queries - matched) + matched


def _criterion(config: Any) -> tuple[Any, tuple[str, str], dict[str, float]]:
    """Return transformers' criterion, the losses to ask it for, and their weights."""
    kind = CRITERIA[config.model_type]
    if kind == _LAYERS_OF_RT_DETR:
        from transformers.loss.loss_rt_detr import RTDetrLoss

        criterion = RTDetrLoss(config)
        return criterion, ("vfl", "boxes"), criterion.weight_dict
    from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher, DeformableDetrImageLoss
    from transformers.loss.loss_for_object_detection import HungarianMatcher, ImageLoss

    costs = {"class_cost": config.class_cost, "bbox_cost": config.bbox_cost, "giou_cost": config.giou_cost}
    weights = {
        "loss_ce": 1.0,
        "loss_bbox": config.bbox_loss_coefficient,
        "loss_giou": config.giou_loss_coefficient,
    }
    if kind == _WEIGHTED:
        weighted = ImageLoss(HungarianMatcher(**costs), config.num_labels, config.eos_coefficient, [])
        return weighted, ("labels", "boxes"), weights
    focal = DeformableDetrImageLoss(DeformableDetrHungarianMatcher(**costs), config.num_labels, config.focal_alpha, [])
    return focal, ("labels", "boxes"), weights


def best_objects(scores: "Tensor", boxes: "Tensor", size: "Tensor") -> list[tuple[int, float, list[float]]]:
    """Return the objects that an image's queries find: class, score, and left, top, right and bottom in pixels.

    Args:
        scores: [queries, classes].
        boxes: [queries, 4]: centre x, centre y, width and height as shares of the image.
        size: The image's width and height, [2].

    Returns:
        The best first: as many as there are queries, 100 at most, as COCO scores them; boxes are cut at the edges.
    """
    import torch

    best, places = scores.flatten().topk(min(_MAX_DETECTIONS, len(scores)))
    centre, extent = boxes[places // scores.shape[1]].split(2, -1)
    corners = torch.cat([centre - extent / 2, centre + extent / 2], -1) * size.repeat(2)
    corners = corners.minimum(size.repeat(2)).clamp_min(0)
    rows = zip((places % scores.shape[1]).tolist(), best.tolist(), corners.tolist(), strict=True)
    return [row for row in rows if row[1] > 0]
