"""Image classification: single-label, multi-label, or a number."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from onecurve.content.augmentation import (
    Geometry,
    draw_angle,
    draw_crop,
    draw_erased,
    draw_flip,
    draw_jitter,
    erase,
    whole,
)
from onecurve.content.images import decode_image, plain_png
from onecurve.content.media import read_media
from onecurve.content.mixing import Mixing, mixed
from onecurve.content.pixel_values import pixel_values, processed, size_made
from onecurve.errors import ConfigError
from onecurve.tasks._labelled import Labelled, LabelSettings
from onecurve.tasks.base import BadRow, Batch, Example, Processing, Row, Settings, Survey

if TYPE_CHECKING:
    import numpy
    from numpy.random import Generator
    from PIL.Image import Image


class _Shares(Settings):
    scale: list[float]
    ratio: list[float]

    @field_validator("scale", "ratio")
    @classmethod
    def _is_a_range(cls, values: list[float]) -> list[float]:
        if len(values) != 2 or not 0 < values[0] <= values[1]:
            raise ValueError(f"must be two positive numbers, the smaller first; got {values}")
        return values

    @field_validator("scale")
    @classmethod
    def _is_a_share(cls, values: list[float]) -> list[float]:
        if values[1] > 1:
            raise ValueError(f"must be at most 1, the whole image; got {values}")
        return values


class Crop(_Shares):
    scale: list[float] = Field(default=[0.08, 1.0])
    """Smallest and largest share of the image's area."""
    ratio: list[float] = Field(default=[0.75, 4 / 3])
    """Smallest and largest width over height."""


class Erasing(_Shares):
    probability: float = Field(default=0.25, ge=0, le=1)
    """Share of the images in which a rectangle is blanked."""
    scale: list[float] = Field(default=[0.02, 0.33])
    """Smallest and largest share of the image's area."""
    ratio: list[float] = Field(default=[0.3, 3.3])
    """Smallest and largest height over width."""


class Colours(Settings):
    brightness: float = Field(default=0.0, ge=0)
    """The factor is at most this far from 1."""
    contrast: float = Field(default=0.0, ge=0)
    """Likewise."""
    saturation: float = Field(default=0.0, ge=0)
    """Likewise."""
    hue: float = Field(default=0.0, ge=0, le=0.5)
    """The turn is at most this share of the circle of colours."""


class Augment(Settings):
    crop: Crop | None = Crop()
    """Random resized crop: a part of the image, resized to what the model reads. null: what evaluation shows it."""
    horizontal_flip: float = Field(default=0.5, ge=0, le=1)
    """Share of the images that are mirrored; 0 where left and right matter, as in writing."""
    vertical_flip: float = Field(default=0.0, ge=0, le=1)
    """Share of the images that are turned upside down."""
    rotation: float = Field(default=0.0, ge=0, le=180)
    """Largest angle, in degrees, by which images are rotated either way."""
    colour_jitter: Colours = Colours()
    """Random changes of colours."""
    erasing: Erasing | None = None
    """Random erasing; null: none."""


class ImageClassificationSettings(LabelSettings):
    augment: Augment | None = Augment()
    """What is done to training images, drawn anew each time; null: nothing."""


class Task(Labelled):
    """Predict one of several labels of an image, any number of labels, or a number."""

    Settings: ClassVar[type[Settings]] = ImageClassificationSettings
    columns: ClassVar[Mapping[str, str]] = {
        "image": "an image file",
        "label": "a name or whole number; multi-label: a list of names or a 0/1 vector; regression: a number",
    }
    media: ClassVar[Mapping[str, str]] = {"image": "image"}
    sample: ClassVar[Sequence[Row]] = [
        {"image": plain_png((shade, 40, 40) if red else (40, 40, shade)), "label": "red" if red else "blue"}
        for shade in range(120, 248, 4)
        for red in (True, False)
    ]
    packages: frozenset[str] = frozenset({"PIL"})

    def __init__(self, settings: ImageClassificationSettings) -> None:
        super().__init__(settings)
        self._fits: Processing | None = None
        """What was last found to fit together: a processor and a model."""

    def check_input(self, row: Row) -> None:
        if not isinstance(row.get("image"), Mapping):
            raise BadRow("image is missing")

    # Examples

    def auto_processor(self) -> type:
        from transformers import AutoImageProcessor

        return AutoImageProcessor

    def encode(self, row: Row, survey: Survey, reading: Processing, truncate: bool) -> list[Example]:
        if self._fits is not reading:
            check_fit(self.auto_model(), reading.config, size_made(reading.processor))
            self._fits = reading
        _decoded(row["image"])
        return [{"image": row["image"], **self.labelled(row, survey)}]

    def length(self, example: Example) -> int:
        return 1  # all images have one size

    def transform(self, example: Example, rng: "Generator", training: bool, reading: Processing) -> Example:
        """Return `pixel_values`, float32 [channels, height, width], in place of the file."""
        image, augment, processor = _decoded(example["image"]), self.settings.augment, reading.processor
        seen = _augmented(image, rng, augment, processor) if training and augment else processed(image, processor)
        return {**example, "pixel_values": seen}

    def mix(self, example: Example, partner: Example, mixing: Mixing, rng: "Generator") -> Example:
        seen, share = mixed(example["pixel_values"], partner["pixel_values"], mixing, rng)
        return {**example, "pixel_values": seen, "partner_labels": partner["labels"], "share": share}

    def collate(self, examples: Sequence[Example], reading: Processing) -> Batch:
        import numpy
        import torch

        stacked = numpy.stack([example["pixel_values"] for example in examples])
        return {"pixel_values": torch.from_numpy(stacked), **self.collate_labels(examples)}

    def describe(self, example: Example, survey: Survey, tokenizer: Any) -> str:
        return f"{example['image']['path']} -> «{self.shown_label(example, survey)}»"

    # The model

    def auto_model(self) -> type:
        from transformers import AutoModelForImageClassification

        return AutoModelForImageClassification


def check_fit(auto_model: Any, config: Any, size: tuple[int, int]) -> None:
    """Check that a model takes the images that its processor makes, which are RGB.

    Args:
        auto_model: Builds the model, on `meta`: nothing is allocated or computed.
        config: The model's.
        size: Width and height of the images.

    Raises:
        ConfigError: It has another number of channels, or cannot take that size.
    """
    import torch

    vision, (width, height) = getattr(config, "vision_config", config), size
    if (channels := getattr(vision, "num_channels", 3)) != 3:
        raise ConfigError(f"it reads images of {channels} channels; images are read as RGB.", where="model.path")
    stated = getattr(vision, "image_size", None)
    if stated is None or _pair(stated) == (height, width):
        return
    try:
        with torch.device("meta"), torch.no_grad():
            model = auto_model.from_config(config, trust_remote_code=True)
            model.eval()(pixel_values=torch.zeros(1, 3, height, width))
    except (ValueError, RuntimeError, AssertionError, IndexError):
        told = "x".join(map(str, _pair(stated)))
        raise ConfigError(
            f"the model has positions for images of {told} pixels, and its processor makes them {height}x{width}.",
            where="model.path",
            fix="Set the size (and crop_size) in its preprocessor_config.json to the model's, or name a folder with "
            "such a file in model.tokenizer.",
        ) from None


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _decoded(image: Mapping[str, str]) -> "Image":
    return decode_image(read_media(image), f"image '{image['path']}'")


def _augmented(image: "Image", rng: "Generator", augment: Augment, processor: Any) -> "numpy.ndarray":
    crop, output = whole(image.size), image.size
    if augment.crop:  # else the processor does what it does in evaluation
        crop, output = draw_crop(rng, image.size, *_ranges(augment.crop)), size_made(processor)
    geometry = Geometry(
        image.size,
        crop,
        output,
        draw_angle(rng, augment.rotation) if augment.rotation else 0.0,
        draw_flip(rng, augment.horizontal_flip),
        draw_flip(rng, augment.vertical_flip),
    )
    seen = draw_jitter(rng, **augment.colour_jitter.model_dump()).apply(geometry.image(image, _filter(processor)))
    pixels = (pixel_values if augment.crop else processed)(seen, processor)
    if augment.erasing and draw_flip(rng, augment.erasing.probability):
        height, width = pixels.shape[1:]
        box = draw_erased(rng, (width, height), *_ranges(augment.erasing))
        pixels = erase(pixels, box) if box else pixels
    return pixels


def _filter(processor: Any) -> int:
    from PIL.Image import Resampling

    return Resampling.BILINEAR if processor.resample is None else processor.resample


def _ranges(shares: _Shares) -> tuple[tuple[float, float], tuple[float, float]]:
    return (shares.scale[0], shares.scale[1]), (shares.ratio[0], shares.ratio[1])
