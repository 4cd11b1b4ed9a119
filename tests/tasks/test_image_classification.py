import copy
import math
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from onecurve.config import TaskSection
from onecurve.content.pixel_values import pixel_values, processed, size_made
from onecurve.errors import ConfigError, DataError
from onecurve.model.batch_norm import settle_batch_norm
from onecurve.tasks import load_task
from onecurve.tasks.base import BadRow, Survey
from onecurve.tasks.image_classification import Task
from tests.readings import ReadingOf
from tests.tasks.contract import Case, distance, without_dropout
from tests.tiny_vision import CONFIGS, IMAGES, SIZE, build_tiny_vision, media, processor

MULTI, NUMBER = "multi_label_classification", "regression"


def _rows(*labels: Any) -> list[dict[str, Any]]:
    return [{"image": image, "label": label} for image, label in zip(IMAGES, labels, strict=True)]


CASES = {
    "images": Case(_rows("cat", "dog", "cat", "emu"), model="tiny_vit", nats_per_item=math.log(3)),
    "images_of_many_labels": Case(
        _rows(["a", "b"], [], ["c"], ["a"]), {"problem_type": MULTI}, model="tiny_vit", nats_per_item=math.log(2)
    ),
}


def _task(**settings: Any) -> Task:
    return load_task(TaskSection(name="image_classification", **settings))


def _reading(kind: str = "vit", **config: Any) -> ReadingOf:
    from transformers import AutoConfig

    return ReadingOf(
        lambda: processor(kind), config=AutoConfig.for_model(kind, architectures=[], **(CONFIGS[kind] | config))
    )


def _example(place: int = 0) -> dict[str, Any]:
    return {"image": IMAGES[place], "labels": 0, "num_items": 1}


def _pixels(task: Task, seed: int, training: bool = True, kind: str = "vit", place: int = 0) -> Any:
    rng = numpy.random.default_rng(seed)
    return task.transform(_example(place), rng, training, _reading(kind))["pixel_values"]


@pytest.fixture(scope="module", params=CONFIGS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def test_each_architecture_reads_what_its_own_processor_makes_and_has_transformers_own_loss(
    kind: str, tmp_path: Path
) -> None:
    from transformers import AutoConfig

    folder = build_tiny_vision(tmp_path / kind, kind)
    task, rows = _task(), _rows("a", "b", "a", "c")
    survey = task.survey(rows)
    reading = ReadingOf(
        lambda: task.auto_processor().from_pretrained(folder, backend="pil"), config=AutoConfig.from_pretrained(folder)
    )
    examples = [example for row in rows for example in task.encode(row, survey, reading, truncate=True)]
    assert [example["labels"] for example in examples] == [0, 1, 0, 2]
    rng = numpy.random.default_rng(0)
    batch = task.collate([task.transform(example, rng, False, reading) for example in examples], reading)
    opened = [Image.open(image["path"]).convert("RGB") for image in IMAGES]
    assert torch.equal(batch["pixel_values"], reading.processor(images=opened, return_tensors="pt")["pixel_values"])

    model = task.auto_model().from_pretrained(folder, **task.model_config(survey))
    settle_batch_norm(model, "frozen")
    whole = without_dropout(model).double().train()
    batch["pixel_values"] = batch["pixel_values"].double()
    loss = task.loss_sum(task.forward(whole, batch), batch)
    assert loss.item() == pytest.approx(4 * whole(**batch).loss.item(), rel=1e-5)
    assert distance(_gradient(task, whole, batch, [4]), _gradient(task, whole, batch, [1, 2, 1])) < 1e-5

    augmented = task.collate([task.transform(example, rng, True, reading) for example in examples], reading)
    assert augmented["pixel_values"].shape == batch["pixel_values"].shape == (4, 3, SIZE, SIZE)
    assert not torch.allclose(augmented["pixel_values"].double(), batch["pixel_values"])


def _gradient(task: Task, model: Any, batch: dict[str, torch.Tensor], cut: list[int]) -> torch.Tensor:
    model.zero_grad(set_to_none=True)
    parts = {name: tensor.split(cut) for name, tensor in batch.items()}
    for number in range(len(cut)):
        part = {name: tensors[number] for name, tensors in parts.items()}
        (task.loss_sum(task.forward(model, part), part) / len(batch["labels"])).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_a_draw_depends_on_the_generator_alone() -> None:
    settings = {"rotation": 10.0, "colour_jitter": {"brightness": 0.3, "hue": 0.1}, "erasing": {"probability": 1.0}}
    task = _task(augment=settings)
    first = _pixels(task, 3)
    _pixels(task, 4, place=1)
    torch.manual_seed(9)
    numpy.random.seed(9)
    assert numpy.array_equal(_pixels(task, 3), first)
    assert not numpy.array_equal(_pixels(task, 4), first)


def test_an_example_is_not_changed_by_its_transform() -> None:
    example = _example()
    before = copy.deepcopy(example)
    _task().transform(example, numpy.random.default_rng(0), True, _reading())
    assert example == before


@pytest.mark.parametrize("kind", ["vit", "convnext", "deit"])
def test_scoring_and_training_without_augmentation_see_what_the_processor_makes(kind: str) -> None:
    image = Image.open(IMAGES[0]["path"]).convert("RGB")
    oracle = processor(kind)(images=image, return_tensors="np")["pixel_values"][0]
    nothing = {"crop": None, "horizontal_flip": 0}
    for task, training in ((_task(), False), (_task(augment=None), True), (_task(augment=nothing), True)):
        for seed in (0, 1):
            assert numpy.array_equal(_pixels(task, seed, training, kind), oracle)


def test_a_crop_of_everything_is_what_the_processor_resizes() -> None:
    task = _task(augment={"crop": {"scale": [1, 1], "ratio": [40 / 36, 40 / 36]}, "horizontal_flip": 0})
    assert numpy.abs(_pixels(task, 0) - _pixels(task, 0, training=False)).max() < 0.01


@pytest.mark.parametrize(("flip", "axis"), [("horizontal_flip", -1), ("vertical_flip", -2)])
def test_flips_mirror_what_the_model_reads(flip: str, axis: int) -> None:
    task = _task(augment={"crop": None, "horizontal_flip": 0, flip: 1})
    mirrored = numpy.flip(_pixels(task, 0, training=False), axis)
    assert numpy.abs(_pixels(task, 0) - mirrored).max() < 0.02  # half a grey level from rounding


def test_colours_and_erasing_change_what_they_say() -> None:
    plain = _pixels(_task(), 0, training=False)
    darker = _task(augment={"crop": None, "horizontal_flip": 0, "colour_jitter": {"brightness": 0.5}})
    assert len({float(_pixels(darker, seed).mean()) for seed in range(4)}) == 4
    erased = _task(augment={"crop": None, "horizontal_flip": 0, "erasing": {"probability": 1, "scale": [0.2, 0.3]}})
    gone = (_pixels(erased, 0) == 0).all(0)
    assert 0.15 < gone.mean() < 0.35
    assert numpy.array_equal(_pixels(erased, 0)[:, ~gone], plain[:, ~gone])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"augment": {"crop": {"scale": [0.5, 0.2]}}}, "task.augment.crop.scale: must be two positive numbers"),
        ({"augment": {"crop": {"scale": [0.5, 2]}}}, "task.augment.crop.scale: must be at most 1, the whole image"),
        ({"augment": {"horizontal_flip": 2}}, "task.augment.horizontal_flip: must be less than or equal to 1; got 2"),
        ({"augment": {"flip": 0.5}}, "Unknown setting 'task.augment.flip'"),
        ({"augment": {"colour_jitter": {"hue": 0.6}}}, "task.augment.colour_jitter.hue: must be less than or equal"),
        ({"labels": ["a"]}, "task: labels must name at least 2"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        _task(**settings)
    assert told in str(refused.value)


def test_a_file_that_cannot_be_read_is_a_bad_row_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(Path(IMAGES[0]["path"]).read_bytes()[:90])
    (tmp_path / "list.png").write_bytes(b"image,label\n")
    task, survey = _task(), Survey(["a", "b"])
    for name, why in (("cut.png", "the file is truncated"), ("list.png", "its bytes are of no known image format")):
        row = {"image": media(tmp_path / name), "label": "a"}
        with pytest.raises(BadRow) as refused:
            task.encode(row, survey, _reading(), truncate=True)
        assert str(refused.value).startswith(f"image '{tmp_path / name}' is not an image that can be read: {why}")
    with pytest.raises(BadRow, match="image is missing"):
        task.check({"label": "a"})


def test_a_row_to_predict_needs_no_label_and_its_answer_names_the_labels() -> None:
    task, survey, reading = _task(), Survey(["cat", "dog"]), _reading()
    (example,) = task.encode({"image": IMAGES[0]}, survey, reading, truncate=True)
    assert example == {"image": IMAGES[0], "num_items": 0}
    batch = task.collate([task.transform(example, numpy.random.default_rng(0), False, reading)], reading)
    assert batch.keys() == {"pixel_values"}
    (answer,) = task.answers(torch.tensor([[2.0, 0.0]]), batch, [example], survey)
    assert answer["label"] == "cat" and set(answer["probabilities"]) == {"cat", "dog"}


def test_labels_are_those_of_any_classification() -> None:
    task = _task()
    assert task.survey(_rows(10, 9, 2, 9)).labels == ["2", "9", "10"]
    with pytest.raises(DataError, match="at least 2 different labels"):
        task.survey(_rows("a", "a", "a", "a"))
    with pytest.raises(BadRow, match="'emu' was never seen in training"):
        task.check_label({"image": IMAGES[0], "label": "emu"}, Survey(["cat", "dog"]))
    assert _task(problem_type=NUMBER).model_config(Survey()) == {"problem_type": NUMBER, "num_labels": 1}


def _encode(reading: ReadingOf) -> None:
    _task().encode(_rows("a", "b", "a", "b")[0], Survey(["a", "b"]), reading, truncate=True)


@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_a_model_with_positions_for_another_size_is_refused_before_it_is_loaded(kind: str) -> None:
    with pytest.raises(ConfigError, match="positions for images of 64x64 pixels, and its processor makes them 32x32"):
        _encode(_reading(kind, image_size=64))


@pytest.mark.parametrize("kind", ["swin", "convnext", "beit"])
def test_a_model_that_takes_any_size_takes_another_than_its_own(kind: str) -> None:
    _encode(_reading(kind, image_size=64))


def test_a_model_of_grey_images_is_refused() -> None:
    with pytest.raises(ConfigError, match="it reads images of 1 channels; images are read as RGB"):
        _encode(_reading(num_channels=1))


def test_a_processor_that_gives_images_different_sizes_is_refused() -> None:
    from transformers import ViTImageProcessorPil

    for settings in ({"do_resize": False}, {"size": {"shortest_edge": 32}}):
        with pytest.raises(ConfigError, match="its processor does not give all images one size"):
            size_made(ViTImageProcessorPil(**settings))


def test_the_size_made_is_that_of_what_the_processor_makes(kind: str) -> None:
    assert size_made(processor(kind)) == (SIZE, SIZE)
    sized = pixel_values(Image.new("RGB", (SIZE, SIZE), (9, 9, 9)), processor(kind))
    resized = processed(Image.new("RGB", (70, 50), (9, 9, 9)), processor(kind))
    assert sized.dtype == numpy.float32 and numpy.array_equal(sized, resized)
