"""Semantic segmentation: a class for each pixel of an image."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import model_validator

from onecurve.content.images import boxed_png, boxed_samples, decode_image
from onecurve.content.labels import are_placeholders, label_name
from onecurve.content.masks import UNLABELLED, PixelClasses, decode_mask, run_lengths
from onecurve.content.media import read_media
from onecurve.content.pixel_values import pixel_values
from onecurve.content.placed_pixels import size_read
from onecurve.errors import ConfigError
from onecurve.tasks import base
from onecurve.tasks._placing import PlacingSettings, augmented, label_config, stacked
from onecurve.tasks.base import Answer, BadRow, Batch, Example, Processing, Row, Settings, Survey

if TYPE_CHECKING:
    import numpy
    from numpy.random import Generator
    from torch import Tensor, nn

_AUXILIARY = "auxiliary_head"
"""What transformers calls the second head that BEiT, DPT and UperNet train beside the first."""


class SemanticSegmentationSettings(PlacingSettings):
    labels: list[str | int] | dict[int, str | int] | None = None
    """The name of each class, by id: the number that its pixels have in a mask. Or a map from that number to the name.
    Absent: those of the model's config."""
    ignore_index: int | None = 255
    """The value of pixels without a label, which are neither learnt nor scored."""
    reduce_labels: bool | None = None
    """Whether 0 has no label and the first class is 1, as in ADE20K. Absent: what the model's processor says."""

    @property
    def names(self) -> list[str]:
        """The class names that are set, by id."""
        return [
            label_name(name) for name in (self.labels.values() if isinstance(self.labels, dict) else self.labels or ())
        ]

    @property
    def values(self) -> list[int] | None:
        """The pixel value of each class, where `labels` is a map."""
        return list(self.labels) if isinstance(self.labels, dict) else None

    @model_validator(mode="after")
    def _fit_together(self) -> "SemanticSegmentationSettings":
        names = self.names
        if self.labels is not None and (len(set(names)) < max(2, len(names)) or "" in names):
            raise ValueError(f"labels must name at least two different classes; got {names}")
        if isinstance(self.labels, dict) and self.reduce_labels:
            raise ValueError("labels is a map, which says what each value is: leave reduce_labels out")
        if "ignore_index" not in self.model_fields_set and self.ignore_index in range(len(names)) and not self.values:
            raise ValueError(
                f"labels names {len(names)} classes, of which 255 is one: set ignore_index to another value or null"
            )
        return self


class Task(base.Task):
    """Say of each pixel what it belongs to.

    An item of the loss is an image: the mean over its labelled pixels. How many a crop will have is not known to the
    plan; so an image whose crop has none counts, and adds nothing.
    """

    Settings: ClassVar[type[Settings]] = SemanticSegmentationSettings
    columns: ClassVar[Mapping[str, str]] = {
        "image": "an image file",
        "mask": "an image file of one channel and the same size, whose pixels are the numbers of classes",
    }
    sample: ClassVar[Sequence[Row]] = [
        {"image": image, "mask": boxed_png(b"\1", b"\0", box)} for box, image in boxed_samples()
    ]
    media: ClassVar[Mapping[str, str]] = {"image": "image", "mask": "image"}
    targets: ClassVar[frozenset[str]] = frozenset({"mask"})
    metric_names: Sequence[str] = ("loss", "mean_iou", "pixel_accuracy", "mean_accuracy")
    packages: frozenset[str] = frozenset({"PIL"})

    def without_effect(self, reading: Processing | None = None) -> Mapping[str, str]:
        return base.NO_TEXT_OUT

    def check_input(self, row: Row) -> None:
        _check_file(row, "image")

    def check(self, row: Row) -> None:
        self.check_input(row)
        _check_file(row, "mask")

    def survey(self, rows: Iterable[Row]) -> Survey:
        return Survey(self.settings.names, "recipe") if self.settings.labels is not None else Survey(order="model")

    # Examples

    def auto_processor(self) -> type:
        from transformers import AutoImageProcessor

        return AutoImageProcessor

    def encode(self, row: Row, survey: Survey, reading: Processing, truncate: bool) -> list[Example]:
        _check_labels(survey, reading)
        size_read(reading.processor)
        image = decode_image(read_media(row["image"]))
        if row.get("mask") is None:
            return [{"image": row["image"], "num_items": 0}]
        mask = decode_mask(read_media(row["mask"]))
        if image.size != mask.shape[::-1]:
            raise BadRow(
                f"image has {image.width} x {image.height} pixels and mask {mask.shape[1]} x {mask.shape[0]}; they "
                "must be of one size"
            )
        self._classes(len(survey.labels), reading).read(mask)
        return [{"image": row["image"], "mask": row["mask"], "num_labels": len(survey.labels), "num_items": 1}]

    def _classes(self, num_labels: int, reading: Processing) -> PixelClasses:
        settings, reduce = self.settings, self.settings.reduce_labels
        if reduce is None:
            reduce = bool(getattr(reading.processor, "do_reduce_labels", False)) and settings.values is None
        return PixelClasses.of(num_labels, settings.values, settings.ignore_index, reduce)

    def length(self, example: Example) -> int:
        return 1

    def transform(self, example: Example, rng: "Generator", training: bool, reading: Processing) -> Example:
        """Return pixel_values [channels, height, width], labels [height, width], sizes and, to be scored, the mask."""
        import numpy
        from PIL import Image

        image = decode_image(read_media(example["image"]))
        image, geometry = augmented(image, rng, self.settings, training, size_read(reading.processor))
        seen = geometry.image(image, reading.processor.resample)
        found = {"pixel_values": pixel_values(seen, reading.processor), "sizes": image.size, "num_items": 0}
        if "mask" not in example:
            return found
        classes = self._classes(example["num_labels"], reading)
        mask = classes.read(decode_mask(read_media(example["mask"])))
        moved = geometry.mask(Image.fromarray(mask.astype("int32")), fill=UNLABELLED)
        found |= {"labels": numpy.asarray(moved).astype("int64"), "num_items": 1}
        return found if training else found | {"mask": mask}

    def collate(self, examples: Sequence[Example], reading: Processing) -> Batch:
        import torch

        batch: Batch = {}
        for name in ("pixel_values", "labels"):
            if name in examples[0]:
                batch[name] = stacked(examples, name)
        batch["sizes"] = torch.tensor([example["sizes"][::-1] for example in examples])
        if "mask" in examples[0]:
            height, width = batch["sizes"].amax(0).tolist()
            batch["mask"] = torch.full((len(examples), height, width), UNLABELLED)
            for place, example in enumerate(examples):
                rows, columns = example["mask"].shape
                batch["mask"][place, :rows, :columns] = torch.from_numpy(example["mask"])
        return batch

    def num_items(self, batch: Batch) -> int:
        return len(batch["labels"])

    # The model

    def auto_model(self) -> type:
        from transformers import AutoModelForSemanticSegmentation

        return AutoModelForSemanticSegmentation

    def model_config(self, survey: Survey) -> dict[str, Any]:
        return label_config(survey.labels)

    def forward(self, model: "nn.Module", batch: Batch) -> Any:
        """Return the logits, [images, classes, height, width]; with a model's second head, also those of that."""
        import torch

        second = [module for name, module in model.named_modules() if name.rpartition(".")[2] == _AUXILIARY]
        if not second:
            return model(pixel_values=batch["pixel_values"]).logits
        auxiliary: list[Tensor] = []
        hook = second[0].register_forward_hook(lambda module, inputs, output: auxiliary.append(output))
        try:
            logits = model(pixel_values=batch["pixel_values"]).logits
        finally:
            hook.remove()
        config: Any = next(module.config for module in model.modules() if hasattr(module, "config"))
        weights = torch.full((len(logits),), config.auxiliary_loss_weight, device=logits.device)
        return {"logits": logits, "auxiliary": auxiliary[-1], "auxiliary_weights": weights}

    def loss_sum(self, outputs: Any, batch: Batch) -> "Tensor":
        if not isinstance(outputs, Mapping):
            return _image_losses(outputs, batch["labels"]).sum()
        auxiliary = _image_losses(outputs["auxiliary"], batch["labels"]) * outputs["auxiliary_weights"]
        return (_image_losses(outputs["logits"], batch["labels"]) + auxiliary).sum()

    # Scores and predictions

    def predict(self, outputs: Any, batch: Batch) -> list[tuple[Any, Any]]:
        from onecurve.metrics.segmentation import count_pairs

        pairs: list[tuple[Any, Any]] = []
        for place, predicted in enumerate(_predicted(outputs, batch)):
            right = batch["mask"][place, : predicted.shape[0], : predicted.shape[1]].cpu().numpy()
            pairs.append((count_pairs(right, predicted, _logits(outputs).shape[1]), int((right >= 0).sum())))
        return pairs

    def metrics(self, pairs: Sequence[tuple[Any, Any]], loss: float, survey: Survey) -> dict[str, Any]:
        from onecurve.metrics.segmentation import score_pixels

        return {"loss": loss, **score_pixels([counts for counts, _ in pairs], survey.labels)}

    def answers(self, outputs: Any, batch: Batch, examples: Sequence[Example], survey: Survey) -> list[Answer]:
        return [{"segments": _segments(mask, survey.labels)} for mask in _predicted(outputs, batch)]

    def reference(self, example: Example, survey: Survey) -> Answer:
        return {"reference": example["mask"]["path"]}

    def describe(self, example: Example, survey: Survey, tokenizer: Any) -> str:
        return f"{example['image']['path']} -> «{example['mask']['path']}»"


def _check_file(row: Row, column: str) -> None:
    if not isinstance(row.get(column), dict):
        raise BadRow(f"{column} is missing")


def _check_labels(survey: Survey, reading: Processing) -> None:
    """Check that names which the recipe leaves to the model are those of segments, and not of what it was before.

    Raises:
        ConfigError: They are not.
    """
    if survey.order != "model":
        return
    kinds = getattr(reading.config, "architectures", None) or []
    if (
        not survey.labels
        or are_placeholders(survey.labels)
        or not any("SemanticSegmentation" in kind for kind in kinds)
    ):
        raise ConfigError(
            "is not set, and the model's config names no classes of pixels.",
            where="task.labels",
            fix="Name the classes by their values in the masks, as in [background, road] or {0: background, 7: road}.",
        )


def _logits(outputs: Any) -> "Tensor":
    return outputs["logits"] if isinstance(outputs, Mapping) else outputs


def _enlarged(logits: "Tensor", size: Sequence[int]) -> "Tensor":
    """Return logits at a size (height, width), as transformers' losses and post-processing have it."""
    from torch.nn import functional

    return functional.interpolate(logits.float(), size=tuple(size), mode="bilinear", align_corners=False)


def _image_losses(logits: "Tensor", labels: "Tensor") -> "Tensor":
    """Return the mean cross-entropy over each image's labelled pixels, zero where it has none: float32 [images]."""
    from torch.nn import functional

    enlarged = _enlarged(logits, labels.shape[-2:])
    losses = functional.cross_entropy(enlarged, labels, ignore_index=UNLABELLED, reduction="none").sum((1, 2))
    return losses / (labels != UNLABELLED).sum((1, 2)).clamp_min(1)


def _predicted(outputs: Any, batch: Batch) -> "list[numpy.ndarray]":
    """Return the predicted class of each pixel of the original images: int64 [height, width] each."""
    rows = zip(_logits(outputs), batch["sizes"].tolist(), strict=True)
    return [_enlarged(logits[None], size)[0].argmax(0).cpu().numpy() for logits, size in rows]


def _segments(mask: "numpy.ndarray", names: Sequence[str]) -> list[dict[str, Any]]:
    import numpy

    found, counts = numpy.unique(mask, return_counts=True)
    pairs = sorted(zip(counts.tolist(), found.tolist(), strict=True), reverse=True)
    return [
        {"label": names[label], "share": count / mask.size, "mask": run_lengths(mask == label)}
        for count, label in pairs
    ]
