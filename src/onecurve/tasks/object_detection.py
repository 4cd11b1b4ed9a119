"""Object detection: the objects in an image, each with a category and a box."""

from collections.abc import Iterable, Mapping, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from onecurve.config import nearest
from onecurve.content.images import boxed_samples, decode_image
from onecurve.content.labels import in_natural_order, label_name
from onecurve.content.media import read_media
from onecurve.content.objects import Object, inside, read_objects
from onecurve.content.pixel_values import pixel_values
from onecurve.content.placed_pixels import on_canvas, sizes_read
from onecurve.errors import ConfigError, DataError
from onecurve.losses.detection import (
    CRITERIA,
    best_objects,
    call_with_layers,
    count_items,
    detector_in,
    has_background_class,
    image_losses,
    layers_of,
)
from onecurve.tasks import base
from onecurve.tasks._placing import PlacingSettings, augmented, label_config, stacked
from onecurve.tasks.base import Answer, BadRow, Batch, Example, Processing, Row, Settings, Survey

if TYPE_CHECKING:
    from numpy.random import Generator
    from torch import Tensor, nn

_NO_BOX = -100
"""Class of a row that only pads the boxes of an image to those of another."""


class ObjectDetectionSettings(PlacingSettings):
    labels: list[str | int] | dict[str | int, str | int] | None = None
    """Every category in the order of the ids. Or a map from what the data has to the name: {0: mask, 1: glove}.
    Absent: the training split's, in the order of the model's config where it names the same ones."""
    min_visible: float = Field(default=0.25, gt=0, le=1)
    """Share of a box's area that must be in sight after that; objects that show less are not learnt."""
    threshold: float = Field(default=0.5, ge=0, le=1)
    """Score from which on an object is among a trained model's answers; scores of a split are of all objects found."""

    @property
    def names(self) -> list[str]:
        """The categories that are set, by id."""
        return [label_name(name) for name in (self.renamed.values() or self.labels or ())]

    @property
    def renamed(self) -> dict[str, str]:
        """What the data has -> the category's name, where `labels` is a map."""
        pairs = self.labels.items() if isinstance(self.labels, dict) else ()
        return {label_name(value): label_name(name) for value, name in pairs}

    @model_validator(mode="after")
    def _fit_together(self) -> "ObjectDetectionSettings":
        names = self.names
        if self.labels is not None and (len(set(names)) < max(1, len(names)) or "" in names):
            raise ValueError(f"labels must be distinct and not empty; got {names}")
        return self


class Task(base.Task):
    """Find the objects in an image.

    The loss is that of the model's own kind (DETR, RT-DETR), its parts divided by the global batch's boxes, those that
    a crop has cut away included; DETR's classification by the weights of its queries. An image without objects adds to
    the loss of the classes. A whole global batch without any object teaches a model nothing that divides by boxes.
    """

    Settings: ClassVar[type[Settings]] = ObjectDetectionSettings
    columns: ClassVar[Mapping[str, str]] = {
        "image": "an image file",
        "objects": 'objects: {"bbox": [[x, y, width, height], ...], "category": [...]} in pixels, or a list of such',
    }
    sample: ClassVar[Sequence[Row]] = [
        {"image": image, "objects": {"bbox": [list(box)], "category": ["square"]}} for box, image in boxed_samples()
    ]
    media: ClassVar[Mapping[str, str]] = {"image": "image"}
    targets: ClassVar[frozenset[str]] = frozenset({"objects"})
    terms: Mapping[str, float] = {"boxes": 1.0, "classes": 1.0}
    metric_names: Sequence[str] = ("loss", "map", "map_50", "map_75")
    packages: frozenset[str] = frozenset({"PIL", "scipy", "faster_coco_eval"})

    def without_effect(self, reading: Processing | None = None) -> Mapping[str, str]:
        return base.NO_TEXT_OUT

    # Rows

    def check_input(self, row: Row) -> None:
        if not isinstance(row.get("image"), dict):
            raise BadRow("image is missing")

    def check(self, row: Row) -> None:
        self.check_input(row)
        if row.get("objects") is None:
            raise BadRow("objects is missing; an image without objects has an empty list")
        self._check_known(self._objects(row), self.settings.names or None, "is not in task.labels")

    def _objects(self, row: Row) -> list[Object]:
        renamed = self.settings.renamed
        return [Object(renamed.get(one.name, one.name), one.box, one.is_crowd) for one in read_objects(row["objects"])]

    def _check_known(self, objects: list[Object], known: list[str] | None, what: str) -> None:
        for place, one in enumerate(objects):
            if known is not None and one.name not in known:
                advice = " To name numbers, map them, as in task.labels: {0: NAME}." if one.name.isdigit() else ""
                raise BadRow(f"objects[{place}]: category {one.name!r} {what}. {nearest(one.name, known)}{advice}")

    def row_labels(self, row: Row) -> Sequence[str]:
        return [one.name for one in self._objects(row)]

    def check_label(self, row: Row, survey: Survey) -> None:
        self._check_known(self._objects(row), survey.labels, "was never seen in training")

    def survey(self, rows: Iterable[Row]) -> Survey:
        seen = {one.name for row in rows for one in self._objects(row)}
        if given := self.settings.names:
            return Survey(given, "recipe", [name for name in given if name not in seen])
        if not seen:
            raise DataError(
                "no training image has an object.", where="data.train", fix="Check data.columns: which has the objects?"
            )
        return Survey(in_natural_order(seen))

    # Examples

    def auto_processor(self) -> type:
        from transformers import AutoImageProcessor

        return AutoImageProcessor

    def encode(self, row: Row, survey: Survey, reading: Processing, truncate: bool) -> list[Example]:
        kind = reading.config.model_type
        if kind not in CRITERIA:
            raise ConfigError(
                f"is of the type {kind}, whose loss is not known to be a sum over images; known are "
                f"{', '.join(sorted(CRITERIA))}.",
                where="model.path",
            )
        size = decode_image(read_media(row["image"])).size
        sizes_read(reading.processor, size)
        if row.get("objects") is None:
            return [{"image": row["image"], "num_items": [0, 0]}]
        objects = inside(self._objects(row), size)
        learnt = sum(not one.is_crowd for one in objects)
        return [
            {
                "image": row["image"],
                "boxes": [list(one.box) for one in objects],
                "classes": [survey.labels.index(one.name) for one in objects],
                "crowds": [int(one.is_crowd) for one in objects],
                "num_items": count_items(reading.config, learnt),
            }
        ]

    def length(self, example: Example) -> int:
        return 1

    def transform(self, example: Example, rng: "Generator", training: bool, reading: Processing) -> Example:
        """Return pixel values with their mask, and boxes as shares of the image; to be scored, also those in pixels."""
        import numpy

        image = decode_image(read_media(example["image"]))
        output, canvas = sizes_read(reading.processor, image.size)
        image, geometry = augmented(image, rng, self.settings, training, output)
        pixels = pixel_values(geometry.image(image, reading.processor.resample), reading.processor)
        padded, mask = on_canvas(pixels, canvas)
        found: Example = {"pixel_values": padded, "sizes": geometry.size, "num_items": example["num_items"]}
        if canvas != output or reading.processor.size.get("longest_edge"):
            found["pixel_mask"] = mask
        if "boxes" not in example:
            return found
        boxes, shares = geometry.boxes(example["boxes"])
        classes, crowds = (numpy.array(example[name], dtype="int64") for name in ("classes", "crowds"))
        kept = (shares >= self.settings.min_visible) & (crowds == 0)
        corners = boxes[kept] / numpy.tile(output, 2)
        centred = numpy.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)
        found |= {"boxes": centred.astype("float32"), "classes": classes[kept]}
        if not training:
            pixel_boxes = numpy.array(example["boxes"], dtype="float32").reshape(-1, 4)
            pixel_boxes[:, 2:] -= pixel_boxes[:, :2]
            found["right"] = numpy.concatenate([classes[:, None], crowds[:, None], pixel_boxes], 1).astype("float32")
        return found

    def collate(self, examples: Sequence[Example], reading: Processing) -> Batch:
        import torch

        batch: Batch = {"sizes": torch.tensor([example["sizes"] for example in examples])}
        for name in ("pixel_values", "pixel_mask"):
            if name in examples[0]:
                batch[name] = stacked(examples, name)
        for name, filler in (("boxes", 0), ("classes", _NO_BOX), ("right", _NO_BOX)):
            if name in examples[0]:
                batch[name] = _padded([example[name] for example in examples], filler)
        if "boxes" in batch:
            batch["num_items"] = torch.tensor([example["num_items"] for example in examples])
        return batch

    def num_items(self, batch: Batch) -> list[int]:
        return batch["num_items"].sum(0).tolist()

    # The model

    def auto_model(self) -> type:
        from transformers import AutoModelForObjectDetection

        return AutoModelForObjectDetection

    def model_config(self, survey: Survey) -> dict[str, Any]:
        return label_config(survey.labels)

    def forward(self, model: "nn.Module", batch: Batch) -> dict[str, "Tensor"]:
        """Return the score of each class for each query, its box, and each image's losses where it has objects.

        The model is given no labels: with them RT-DETR would add queries whose number follows the fullest image of the
        micro-batch (denoising), and its loss would be divided by the micro-batch's boxes.
        """
        import torch

        detector = detector_in(model)
        inputs = {"pixel_values": batch["pixel_values"]}
        if "pixel_mask" in batch and "pixel_mask" in signature(type(detector).forward).parameters:
            inputs["pixel_mask"] = batch["pixel_mask"]
        outputs, auxiliary = call_with_layers(model, detector, inputs, learns="boxes" in batch)
        logits, config = outputs.logits.float(), detector.config  # for scores; the losses have all digits
        scores = logits.softmax(-1)[..., :-1] if has_background_class(config) else logits.sigmoid()
        if has_background_class(config):  # of each query its best class, as transformers' post-processing
            scores = scores.where(scores == scores.amax(-1, keepdim=True), 0.0)
        found = {"scores": scores, "boxes": outputs.pred_boxes.float()}
        if "boxes" in batch:
            with torch.autocast(logits.device.type, enabled=False):
                found["losses"] = image_losses(config, layers_of(config, outputs, auxiliary), _targets(batch))
        return found

    def loss_sum(self, outputs: Any, batch: Batch) -> "Tensor":
        return outputs["losses"].float().sum(0)

    # Scores and predictions

    def predict(self, outputs: Any, batch: Batch) -> list[tuple[Any, Any]]:
        rights = [
            [(int(label), bool(crowd), box) for label, crowd, *box in rows if label != _NO_BOX]
            for rows in batch["right"].tolist()
        ]
        found = [
            [(label, score, [x, y, right - x, bottom - y]) for label, score, (x, y, right, bottom) in one]
            for one in _best(outputs, batch)
        ]
        return list(zip(found, rights, strict=True))

    def metrics(self, pairs: Sequence[tuple[Any, Any]], loss: float, survey: Survey) -> dict[str, Any]:
        from onecurve.metrics.detection import score_detections

        return {"loss": loss, **score_detections(pairs, survey.labels)}

    def answers(self, outputs: Any, batch: Batch, examples: Sequence[Example], survey: Survey) -> list[Answer]:
        def told(label: int, score: float, box: Any) -> Answer:
            return {"label": survey.labels[label], "score": score, "box": _named(box)}

        least = self.settings.threshold
        return [{"objects": [told(*each) for each in one if each[1] >= least]} for one in _best(outputs, batch)]

    def reference(self, example: Example, survey: Survey) -> Answer:
        pairs = zip(example["classes"], example["boxes"], strict=True)
        return {"reference": [{"label": survey.labels[label], "box": _named(box)} for label, box in pairs]}

    def describe(self, example: Example, survey: Survey, tokenizer: Any) -> str:
        pairs = zip(example["classes"], example["boxes"], strict=True)
        told = (f"{survey.labels[label]} {' '.join(f'{edge:g}' for edge in box)}" for label, box in pairs)
        return f"{example['image']['path']} -> «{', '.join(told)}»"


def _padded(rows: Sequence[Any], filler: int) -> "Tensor":
    """Return arrays [n, ...] of different n as one tensor, [rows, at least 1, ...], with a filler behind them."""
    import torch

    tensors = [torch.from_numpy(row) for row in rows]
    found = torch.full((len(rows), max(1, *map(len, rows)), *tensors[0].shape[1:]), filler, dtype=tensors[0].dtype)
    for place, tensor in enumerate(tensors):
        found[place, : len(tensor)] = tensor
    return found


def _targets(batch: Batch) -> list[dict[str, "Tensor"]]:
    pairs = zip(batch["classes"], batch["boxes"], strict=True)
    return [{"class_labels": labels[labels != _NO_BOX], "boxes": boxes[labels != _NO_BOX]} for labels, boxes in pairs]


def _best(outputs: Any, batch: Batch) -> Any:
    return map(best_objects, outputs["scores"], outputs["boxes"], batch["sizes"])


def _named(box: Sequence[float]) -> dict[str, float]:
    return dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
