import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from onecurve.config import TaskSection
from onecurve.content.masks import UNLABELLED
from onecurve.errors import ConfigError
from onecurve.tasks import load_task
from onecurve.tasks.base import BadRow, Survey
from tests.tasks.contract import Case, without_dropout
from tests.tasks.shapes import as_batch, media, reading, rows_of, shapes, write_rows

NAMES = list(shapes().LABELS)
SIZE = {"height": 32, "width": 32}


def _mean_of_images(model: Any, batch: Any) -> Any:
    return torch.tensor(_oracle(model, batch)).mean()


CASES = {
    "segments": Case(
        rows_of("image", "mask"),
        {"labels": NAMES},
        model="tiny_segformer",
        nats_per_item=math.log(4),
        oracle=_mean_of_images,
    )
}


def _task(**settings: Any) -> Any:
    return load_task(TaskSection(name="semantic_segmentation", **{"labels": NAMES, **settings}))


def _processor(**settings: Any) -> Any:
    from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

    return SegformerImageProcessorPil(size=SIZE, **settings)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return write_rows(tmp_path_factory.mktemp("shapes"), 4)


@pytest.fixture
def read() -> Any:
    return reading(_processor())


def _examples(task: Any, rows: list[Any], read: Any) -> list[Any]:
    return [example for row in rows for example in task.encode(row, Survey(NAMES, "recipe"), read, truncate=True)]


def _segformer() -> Any:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 2], decoder_hidden_size=16
    )
    return SegformerForSemanticSegmentation, config


def _upernet() -> Any:
    from transformers import ConvNextConfig, UperNetConfig, UperNetForSemanticSegmentation

    backbone = ConvNextConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    config = UperNetConfig(
        backbone_config=backbone, hidden_size=16, auxiliary_in_channels=16, auxiliary_channels=8, pool_scales=[1, 2]
    )
    return UperNetForSemanticSegmentation, config


def _beit() -> Any:
    from transformers import BeitConfig, BeitForSemanticSegmentation

    config = BeitConfig(
        **{"image_size": 32, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2},
        **{"intermediate_size": 16, "out_indices": [1, 2, 3, 4], "use_auxiliary_head": True, "pool_scales": [1, 2]},
        **{"auxiliary_channels": 8},
    )
    return BeitForSemanticSegmentation, config


def _dpt() -> Any:
    from transformers import DPTConfig, DPTForSemanticSegmentation

    config = DPTConfig(
        **{"image_size": 32, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2},
        **{"intermediate_size": 16, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 8, 8, 8]},
        **{"fusion_hidden_size": 8, "is_hybrid": False},
    )
    return DPTForSemanticSegmentation, config


def _mobilevit() -> Any:
    from transformers import MobileViTConfig, MobileViTForSemanticSegmentation

    config = MobileViTConfig(
        **{"image_size": 32, "hidden_sizes": [8, 8, 8], "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 16]},
        **{"num_attention_heads": 2, "aspp_out_channels": 8, "atrous_rates": [1, 2, 3]},
    )
    return MobileViTForSemanticSegmentation, config


ARCHITECTURES = [_segformer, _upernet, _beit, _dpt, _mobilevit]


def _model(task: Any, build: Any) -> Any:
    kind, config = build()
    for name, value in task.model_config(Survey(NAMES, "recipe")).items():
        setattr(config, name, value)
    torch.manual_seed(0)
    model = kind(config)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # its statistics become those of the first batch
    with torch.no_grad():
        for weight in model.parameters():  # drawn at 0.02, where all logits look alike
            if weight.dim() > 1:
                weight.normal_(std=weight[0].numel() ** -0.5)
        model.train()(torch.randn(4, 3, 32, 32))
    return model.eval()


def _oracle(model: Any, batch: Any) -> list[float]:
    """What transformers itself computes of each image alone."""
    labels = batch["labels"].where(batch["labels"] != UNLABELLED, 255)
    pairs = zip(batch["pixel_values"], labels, strict=True)
    return [float(model(pixel_values=image[None], labels=mask[None]).loss) for image, mask in pairs]


@pytest.mark.parametrize("build", ARCHITECTURES, ids=lambda build: build.__name__)
def test_the_loss_is_the_sum_of_what_transformers_computes_of_each_image(build: Any, rows: Any, read: Any) -> None:
    task = _task()
    model, batch = _model(task, build), as_batch(task, read, _examples(task, rows, read))
    assert (batch["labels"] == UNLABELLED).any() and (batch["labels"] > 0).any()
    with torch.no_grad():
        loss, oracle = float(task.loss_sum(task.forward(model, batch), batch)), _oracle(model, batch)
    assert task.num_items(batch) == len(oracle) == 4 and len(set(oracle)) == 4
    assert math.isclose(loss, sum(oracle), rel_tol=1e-5)


@pytest.mark.parametrize("build", ARCHITECTURES, ids=lambda build: build.__name__)
def test_another_cut_has_the_same_gradient_and_every_head_has_one(build: Any, rows: Any, read: Any) -> None:
    task = _task()
    model = without_dropout(_model(task, build)).double()
    batch = as_batch(task, read, _examples(task, rows, read))
    batch["pixel_values"] = batch["pixel_values"].double()
    found = []
    for size in (4, 3, 1):
        model.zero_grad()
        for start in range(0, 4, size):
            part = {name: tensor[start : start + size] for name, tensor in batch.items()}
            (task.loss_sum(task.forward(model, part), part) / 4).backward()
        found.append(
            {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
        )
    assert any("auxiliary_head" in name for name in found[0]) == (getattr(model, "auxiliary_head", None) is not None)
    norm = sum(float(grad.norm()) for grad in found[0].values())
    for other in found[1:]:
        assert sum(float((found[0][name] - grad).norm()) for name, grad in other.items()) < 1e-5 * norm


def test_an_image_whose_crop_has_no_label_adds_nothing_and_counts(read: Any) -> None:
    task, logits = _task(), torch.randn(2, 4, 8, 8, requires_grad=True)
    labels = torch.full((2, 32, 32), UNLABELLED)
    labels[0, :4] = 2
    batch = {"labels": labels}
    task.loss_sum(logits, batch).backward()
    assert task.num_items(batch) == 2 and logits.grad is not None
    assert logits.grad[0].any() and not logits.grad[1].any()


def test_image_and_mask_move_together_by_draws_that_are_the_examples_own(tmp_path: Path) -> None:
    halves = np.zeros((40, 60), dtype=np.uint8)
    halves[:, 30:] = 1
    Image.fromarray(halves).save(tmp_path / "mask.png")
    Image.fromarray(np.repeat(halves[..., None] * 255, 3, 2)).save(tmp_path / "image.png")
    task = _task(labels=["dark", "bright"], scale=[0.5, 2.0])
    read = reading(_processor(do_normalize=False, resample=0))
    row = {"image": media(tmp_path / "image.png"), "mask": media(tmp_path / "mask.png")}
    (example,) = task.encode(row, Survey(["dark", "bright"], "recipe"), read, truncate=True)
    before, seen = copy.deepcopy(example), set()
    for seed in range(20):
        found = task.transform(example, np.random.default_rng(seed), True, read)
        again = task.transform(example, np.random.default_rng(seed), True, read)
        labels = found["labels"]
        assert np.array_equal(labels, again["labels"]) and np.array_equal(found["pixel_values"], again["pixel_values"])
        assert labels.shape == (32, 32) and found["num_items"] == 1
        inside = labels != UNLABELLED
        assert np.array_equal(found["pixel_values"][0][inside] > 0.5, labels[inside] == 1)
        seen.add((int(labels[16, 0]), int(labels[16, -1])))
    assert example == before
    assert {(0, 1), (1, 0)} <= seen and any(UNLABELLED in pair for pair in seen)


def test_an_image_to_be_scored_is_whole_and_is_read_as_transformers_reads_it(rows: Any, read: Any) -> None:
    task = _task()
    for row, example in zip(rows, _examples(task, rows, read), strict=True):
        found = task.transform(example, np.random.default_rng(0), False, read)
        image, mask = (Image.open(row[name]["path"]) for name in ("image", "mask"))
        theirs = read.processor(images=image, segmentation_maps=mask, return_tensors="np")
        assert np.array_equal(found["pixel_values"], theirs["pixel_values"][0])
        assert np.array_equal(found["labels"], theirs["labels"][0])
        assert np.array_equal(found["mask"], np.asarray(mask)) and found["sizes"] == image.size


def test_scores_are_of_the_original_pixels_and_those_of_scikit_learn(rows: Any, read: Any) -> None:
    from sklearn.metrics import accuracy_score, jaccard_score, recall_score

    task = _task()
    model, examples = _model(task, _segformer), _examples(task, rows, read)
    whole = as_batch(task, read, examples, training=False)
    with torch.no_grad():
        outputs = task.forward(model, whole)
    right, found = [], []
    for logits, row in zip(outputs, rows, strict=True):
        mask = np.asarray(Image.open(row["mask"]["path"]))
        (map_,) = read.processor.post_process_semantic_segmentation(_Logits(logits[None]), [mask.shape])
        right.append(mask.ravel())
        found.append(map_.numpy().ravel())
    pixels = np.concatenate(right), np.concatenate(found)
    pairs = task.predict(outputs, whole)
    assert pairs == [pair for part in _one_by_one(task, model, read, examples) for pair in part]
    scores = task.metrics(pairs, 0.5, Survey(NAMES))
    assert scores["loss"] == 0.5 and scores["pixel_accuracy"] == pytest.approx(accuracy_score(*pixels))
    by_label = [scores["per_label"][name]["iou"] for name in NAMES]
    assert by_label == pytest.approx(jaccard_score(*pixels, average=None).tolist())
    assert scores["mean_iou"] == pytest.approx(sum(by_label) / 4)
    assert scores["mean_accuracy"] == pytest.approx(recall_score(*pixels, average="macro"))


class _Logits:
    def __init__(self, logits: Any) -> None:
        self.logits = logits


def _one_by_one(task: Any, model: Any, read: Any, examples: list[Any]) -> Any:
    for example in examples:
        batch = as_batch(task, read, [example], training=False)
        with torch.no_grad():
            yield task.predict(task.forward(model, batch), batch)


def test_a_trained_model_tells_its_segments_and_a_file_without_masks_is_enough(rows: Any, read: Any) -> None:
    task = _task()
    (example,) = task.encode({"image": rows[0]["image"]}, Survey(NAMES, "recipe"), read, truncate=False)
    batch = as_batch(task, read, [example], training=False)
    assert set(batch) == {"pixel_values", "sizes"}
    logits = torch.zeros(1, 4, 2, 2)
    logits[0, 1, :, 0], logits[0, 3, :, 1] = 9, 9
    (answer,) = task.answers(logits, batch, [example], Survey(NAMES))
    first, second = answer["segments"]
    assert {first["label"], second["label"]} == {"circle", "triangle"} and first["share"] == second["share"] == 0.5
    circle = first if first["label"] == "circle" else second
    assert circle["mask"] == {"size": [64, 64], "counts": [0, 32 * 64, 32 * 64]}


@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
def test_masks_are_read_by_value_from_each_kind_of_file(tmp_path: Path, read: Any, mode: str) -> None:
    values = np.array([[0, 1], [3, 255]], dtype=np.uint16 if mode == "I;16" else np.uint8)
    mask = Image.fromarray(values)
    if mode == "P":
        mask = Image.fromarray(values, "P")
        mask.putpalette([number % 256 for number in range(768)][::-1])
    mask.save(tmp_path / "mask.png")
    Image.new("RGB", (2, 2)).save(tmp_path / "image.png")
    row = {name: media(tmp_path / f"{name}.png") for name in ("image", "mask")}
    (example,) = _examples(_task(), [row], read)
    found = _task().transform(example, np.random.default_rng(0), False, read)
    assert found["mask"].tolist() == [[0, 1], [3, UNLABELLED]]


@pytest.mark.parametrize(
    ("values", "settings", "said"),
    [
        (
            [[0, 0], [0, 9]],
            {},
            r"value 9 \(first at row 1, column 1\), which no label has; the labels have 0 to 3, and 255",
        ),
        ([[255, 255], [255, 255]], {}, "no pixel with a label"),
        ([[0, 0, 0], [0, 0, 0]], {}, "image has 2 x 2 pixels and mask 3 x 2"),
        ([[0, 1], [1, 1]], {"labels": {1: "a", 7: "b"}}, "value 0 .*; the labels have 1, 7, and 255 is ignored"),
        ([[5, 1], [1, 1]], {"reduce_labels": True}, "value 5 .*the labels have 1 to 4, and 0, 255 is ignored"),
    ],
)
def test_bad_masks_are_told(tmp_path: Path, read: Any, values: Any, settings: Any, said: str) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "image.png")
    Image.fromarray(np.array(values, dtype=np.uint8)).save(tmp_path / "mask.png")
    row = {name: media(tmp_path / f"{name}.png") for name in ("image", "mask")}
    task = _task(**settings)
    with pytest.raises(BadRow, match=said):
        task.encode(row, Survey(task.settings.names, "recipe"), read, truncate=True)


def test_masks_in_colours_and_damaged_files_are_told(tmp_path: Path, read: Any, rows: Any) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "image.png")
    (tmp_path / "cut.png").write_bytes(Path(rows[0]["mask"]["path"]).read_bytes()[:60])
    with pytest.raises(BadRow, match="PNG image of mode RGB; it must be a PNG of one channel"):
        _examples(_task(), [{"image": media(tmp_path / "image.png"), "mask": media(tmp_path / "image.png")}], read)
    with pytest.raises(BadRow, match="mask is not an image that can be read"):
        _examples(_task(), [{"image": rows[0]["image"], "mask": media(tmp_path / "cut.png")}], read)
    with pytest.raises(BadRow, match="image is not an image that can be read"):
        _examples(_task(), [{"image": media(tmp_path / "cut.png"), "mask": rows[0]["mask"]}], read)


def test_reduced_labels_are_those_of_transformers(tmp_path: Path) -> None:
    values = np.array([[0, 1], [2, 255]], dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "mask.png")
    Image.new("RGB", (2, 2)).save(tmp_path / "image.png")
    row = {name: media(tmp_path / f"{name}.png") for name in ("image", "mask")}
    read = reading(_processor(do_reduce_labels=True))
    (example,) = _examples(_task(), [row], read)
    found = _task().transform(example, np.random.default_rng(0), False, read)
    image, mask = Image.open(tmp_path / "image.png"), Image.open(tmp_path / "mask.png")
    theirs = read.processor(images=image, segmentation_maps=mask, return_tensors="np")["labels"][0]
    assert np.array_equal(np.where(found["labels"] == UNLABELLED, 255, found["labels"]), theirs)
    assert found["mask"].tolist() == [[UNLABELLED, 0], [1, UNLABELLED]]


def test_a_map_of_labels_names_the_values(tmp_path: Path, read: Any) -> None:
    Image.fromarray(np.array([[1, 7], [7, 0]], dtype=np.uint8)).save(tmp_path / "mask.png")
    Image.new("RGB", (2, 2)).save(tmp_path / "image.png")
    row = {name: media(tmp_path / f"{name}.png") for name in ("image", "mask")}
    task = _task(labels={1: "road", 7: "car"}, ignore_index=0)
    assert task.survey([row]).labels == ["road", "car"]
    (example,) = task.encode(row, Survey(["road", "car"], "recipe"), read, truncate=True)
    assert task.transform(example, np.random.default_rng(0), False, read)["mask"].tolist() == [[0, 1], [1, UNLABELLED]]


def test_labels_may_be_those_that_the_model_was_trained_on(rows: Any, read: Any) -> None:
    from transformers import SegformerConfig

    task = _task(labels=None)
    survey = task.survey(rows).in_model_order(NAMES)
    assert survey.labels == NAMES
    read.config = SegformerConfig(architectures=["SegformerForSemanticSegmentation"])
    assert task.encode(rows[0], survey, read, truncate=True)
    for architecture, labels in (("SegformerForImageClassification", NAMES), ("SegformerForSemanticSegmentation", [])):
        read.config = SegformerConfig(architectures=[architecture])
        with pytest.raises(ConfigError, match=r"task.labels: is not set, and the model's config names no classes"):
            task.encode(rows[0], Survey(labels, "model"), read, truncate=True)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"labels": ["a", "a"]}, "at least two different classes"),
        ({"labels": list(range(300))}, "names 300 classes, of which 255 is one"),
        ({"labels": {0: "a", 1: "b"}, "reduce_labels": True}, "leave reduce_labels out"),
        ({"scale": [2.0, 1.0]}, "scale: must be two positive numbers"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        _task(**settings)


def test_images_that_keep_their_own_size_are_refused(rows: Any) -> None:
    read = reading(_processor())
    read.processor.size = type(read.processor.size)(shortest_edge=32)
    with pytest.raises(ConfigError, match="does not resize images to one size"):
        _examples(_task(), rows, read)
