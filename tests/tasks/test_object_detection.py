import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from onecurve.config import TaskSection
from onecurve.errors import ConfigError, DataError
from onecurve.losses.detection import UNITS
from onecurve.model.batch_norm import settle_batch_norm
from onecurve.tasks import load_task
from onecurve.tasks.base import BadRow, Survey
from tests.tasks.contract import Case, without_dropout
from tests.tasks.shapes import as_batch, media, reading, rows_of, write_rows

NAMES = ["circle", "square", "triangle"]
ROW = {"image": {}, "objects": {"bbox": [[1, 2, 3, 4]], "category": ["circle"]}}


CASES = {
    "objects": Case(
        rows_of("image", "objects"),
        model="tiny_detr",
        nats_per_item=math.nan,
        oracle=lambda model, batch: torch.tensor(_oracle(model, batch)),
    )
}


def _task(**settings: Any) -> Any:
    return load_task(TaskSection(name="object_detection", **settings))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    found = write_rows(tmp_path_factory.mktemp("shapes"), 5)
    found[2]["objects"] = {"bbox": [], "category": []}  # an image of nothing
    assert len({len(row["objects"]["bbox"]) for row in found}) > 2
    return found


def _processor(keeps_proportions: bool) -> Any:
    from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil
    from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil

    if keeps_proportions:
        return DetrImageProcessorPil(size={"shortest_edge": 48, "longest_edge": 64})
    return RTDetrImageProcessorPil(size={"height": 64, "width": 64})


def _rt_detr(**settings: Any) -> Any:
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig

    backbone = RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], out_features=["stage2", "stage3", "stage4"]
    )
    config = RTDetrConfig(
        **{"backbone_config": backbone, "encoder_hidden_dim": 16, "encoder_in_channels": [8, 16, 16]},
        **{"encoder_ffn_dim": 16, "encoder_attention_heads": 2, "d_model": 16, "num_queries": 12, "decoder_layers": 3},
        **{"decoder_in_channels": [16, 16, 16], "decoder_ffn_dim": 16, "decoder_attention_heads": 2},
        **{"hidden_expansion": 0.5, "num_denoising": 20, **settings},
    )
    return RTDetrForObjectDetection, config, _processor(False)


def _detr(**settings: Any) -> Any:
    from transformers import DetrConfig, DetrForObjectDetection

    return DetrForObjectDetection, DetrConfig(**_of_detr(), **settings), _processor(True)


def _of_detr() -> dict[str, Any]:
    from transformers import ResNetConfig

    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    return {
        **{"backbone_config": backbone, "d_model": 16, "num_queries": 8, "encoder_layers": 1, "decoder_layers": 3},
        **{"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2},
    }


def _detr_with_layers() -> Any:
    return _detr(auxiliary_loss=True)


def _conditional_detr() -> Any:
    from transformers import ConditionalDetrConfig, ConditionalDetrForObjectDetection

    return ConditionalDetrForObjectDetection, ConditionalDetrConfig(**_of_detr(), auxiliary_loss=True), _processor(True)


def _deformable_detr() -> Any:
    from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

    config = DeformableDetrConfig(
        **{**_of_detr(), "d_model": 32}, num_feature_levels=2, auxiliary_loss=True, disable_custom_kernels=True
    )
    return DeformableDetrForObjectDetection, config, _processor(True)


def _yolos() -> Any:
    from transformers import YolosConfig, YolosForObjectDetection

    config = YolosConfig(
        **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16},
        **{"image_size": [64, 64], "patch_size": 16, "num_detection_tokens": 8},
    )
    return YolosForObjectDetection, config, _processor(False)


ARCHITECTURES = [_rt_detr, _detr, _detr_with_layers, _conditional_detr, _deformable_detr, _yolos]
every_architecture = pytest.mark.parametrize("build", ARCHITECTURES, ids=lambda build: build.__name__)


def _built(task: Any, build: Any) -> tuple[Any, Any]:
    kind, config, processor = build()
    for name, value in task.model_config(Survey(NAMES)).items():
        setattr(config, name, value)
    torch.manual_seed(0)
    model = without_dropout(kind(config))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # its statistics become those of the first batch
    with torch.no_grad():
        for weight in model.parameters():  # drawn so small that all places of an image look alike
            if weight.dim() == 4:
                weight.normal_(std=(2 / weight[0].numel()) ** 0.5)
            elif weight.dim() > 1:
                weight.add_(torch.randn_like(weight) * 0.3 / weight.shape[1] ** 0.5)
        model.train()(torch.rand(4, 3, 64, 64))
    return model.eval(), reading(processor, config)


def _examples(task: Any, rows: list[Any], read: Any) -> list[Any]:
    return [example for row in rows for example in task.encode(row, Survey(NAMES), read, truncate=True)]


def _oracle(model: Any, batch: Any) -> float:
    """What transformers itself computes of the whole batch at once."""
    labels = [
        {"class_labels": classes[classes >= 0], "boxes": boxes[classes >= 0]}
        for classes, boxes in zip(batch["classes"], batch["boxes"], strict=True)
    ]
    inputs = {"pixel_values": batch["pixel_values"]}
    if "pixel_mask" in batch:
        inputs["pixel_mask"] = batch["pixel_mask"]
    with torch.no_grad():
        return float(model(**inputs, labels=labels).loss)


@every_architecture
def test_the_loss_is_what_transformers_computes_of_the_whole_batch(build: Any, rows: Any) -> None:
    task = _task()
    model, read = _built(task, build)
    examples = _examples(task, rows, read)
    batch = as_batch(task, read, examples, training=False)
    with torch.no_grad():
        sums = task.loss_sum(task.forward(model, batch), batch)
    counts = task.num_items(batch)
    assert counts == np.sum([example["num_items"] for example in examples], 0).tolist()
    assert sums.shape == (2,) and all(value > 0 for value in sums.tolist())
    loss = sum(value / count for value, count in zip(sums.tolist(), counts, strict=True))
    assert math.isclose(loss, _oracle(model, batch), rel_tol=1e-5)


@every_architecture
def test_another_cut_has_the_same_gradient(build: Any, rows: Any) -> None:
    task = _task()
    model, read = _built(task, build)
    model = model.double()
    settle_batch_norm(model, "frozen")
    batch = as_batch(task, read, _examples(task, rows, read))
    batch |= {name: batch[name].double() for name in ("pixel_values", "boxes")}
    counts, found = task.num_items(batch), []
    for size in (5, 2, 1):
        model.train()
        model.zero_grad()
        for start in range(0, 5, size):
            part = {name: tensor[start : start + size] for name, tensor in batch.items()}
            sums = task.loss_sum(task.forward(model, part), part)
            (sums / torch.tensor(counts)).sum().backward()
        grads = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
        found.append(grads)
    norm = math.sqrt(sum(float(grad.norm()) ** 2 for grad in found[0].values()))
    for other in found[1:]:
        assert found[0].keys() == other.keys()
        assert math.sqrt(sum(float((found[0][name] - grad).norm()) ** 2 for name, grad in other.items())) < 1e-5 * norm
    assert not any("denoising" in name for name in found[0])


def test_counts_are_boxes_and_for_a_weighted_mean_the_weights_of_queries(rows: Any) -> None:
    task = _task()
    for build, queries in ((_detr, 8), (_rt_detr, None)):
        read = reading(*reversed(build()[1:]))
        for row, example in zip(rows, _examples(task, rows, read), strict=True):
            boxes = len(row["objects"]["bbox"])
            weights = boxes if queries is None else round(UNITS * (0.1 * (queries - boxes) + boxes))
            assert example["num_items"] == [boxes, weights]


def test_boxes_move_with_the_image_by_draws_that_are_the_examples_own(tmp_path: Path) -> None:
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[10:20, 5:25] = 255
    Image.fromarray(pixels).save(tmp_path / "image.png")
    row = {"image": media(tmp_path / "image.png"), "objects": [{"bbox": [5, 10, 20, 10], "category": "a"}]}
    read = reading(_processor(False), _rt_detr()[1])
    read.processor.resample = 0
    task, seen = _task(scale=[0.5, 2.0]), set()
    (example,) = task.encode(row, Survey(["a"]), read, truncate=True)
    before = copy.deepcopy(example)
    for seed in range(24):
        found = task.transform(example, np.random.default_rng(seed), True, read)
        again = task.transform(example, np.random.default_rng(seed), True, read)
        assert all(np.array_equal(found[name], again[name]) for name in ("pixel_values", "boxes", "classes"))
        bright = found["pixel_values"][0] > 0.5
        seen.add(len(found["boxes"]))
        if len(found["boxes"]):
            (rows_, columns), (x, y, width, height) = np.nonzero(bright), found["boxes"][0] * 64
            edges = columns.min(), rows_.min(), columns.max() + 1, rows_.max() + 1
            assert np.allclose(edges, [x - width / 2, y - height / 2, x + width / 2, y + height / 2], atol=1.5)
        else:
            assert bright.sum() < 0.3 * 20 * 10 * (64 / 60) * (64 / 40) * 4
    assert example == before and seen == {0, 1}


@pytest.mark.parametrize("keeps_proportions", [True, False])
def test_an_image_to_be_scored_is_read_as_transformers_reads_it(tmp_path: Path, keeps_proportions: bool) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (50, 90, 3), dtype=np.uint8)).save(tmp_path / "image.png")
    row = {"image": media(tmp_path / "image.png"), "objects": [{"bbox": [9, 10, 18, 20], "category": "a"}]}
    read = reading(_processor(keeps_proportions), _rt_detr()[1])
    task = _task()
    (example,) = task.encode(row, Survey(["a"]), read, truncate=True)
    found = task.transform(example, rng, False, read)
    annotation = {"image_id": 0, "annotations": [{"bbox": [9, 10, 18, 20], "category_id": 0, "area": 360}]}
    theirs = read.processor(Image.open(tmp_path / "image.png"), annotations=annotation, return_tensors="np")
    values = theirs["pixel_values"][0]
    assert np.array_equal(found["pixel_values"][:, : values.shape[1], : values.shape[2]], values)
    assert found["pixel_values"].shape == (3, 64, 64)
    if keeps_proportions:
        assert values.shape[1] < 64 and found["pixel_mask"].sum() == values.shape[1] * values.shape[2]
    labels = theirs["labels"][0]
    assert np.allclose(found["boxes"], labels["boxes"], atol=1e-6) and found["classes"].tolist() == [0]
    assert np.allclose(found["boxes"], [[0.2, 0.4, 0.2, 0.4]], atol=1e-6)


def test_crowds_are_neither_learnt_nor_counted_and_are_kept_for_the_scores(rows: Any) -> None:
    read = reading(*reversed(_rt_detr()[1:]))
    objects = [
        {"bbox": [1, 1, 9, 9], "category": "square", "iscrowd": 1},
        {"bbox": [5, 5, 9, 9], "category": "circle", "iscrowd": 0},
    ]
    (example,) = _task().encode({**rows[0], "objects": objects}, Survey(NAMES), read, truncate=True)
    found = _task().transform(example, np.random.default_rng(0), False, read)
    assert example["num_items"] == [1, 1] and found["classes"].tolist() == [0]
    assert found["right"].tolist() == [[1, 1, 1, 1, 9, 9], [0, 0, 5, 5, 9, 9]]


def test_answers_are_those_of_transformers_post_processing(rows: Any) -> None:
    for build in (_rt_detr, _detr):
        task = _task(threshold=0.1)
        model, read = _built(task, build)
        row = {"image": rows[1]["image"]}
        (example,) = task.encode(row, Survey(NAMES), read, truncate=False)
        batch = as_batch(task, read, [example], training=False)
        assert "boxes" not in batch
        with torch.no_grad():
            (answer,) = task.answers(task.forward(model, batch), batch, [example], Survey(NAMES))
            names = ("pixel_values", "pixel_mask") if "pixel_mask" in batch else ("pixel_values",)
            outputs = model(**{name: batch[name] for name in names})
        size = Image.open(row["image"]["path"]).size
        (theirs,) = read.processor.post_process_object_detection(outputs, threshold=0.1, target_sizes=[size[::-1]])
        order = theirs["scores"].argsort(descending=True)
        assert len(answer["objects"]) == len(order) > 2
        for mine, place in zip(answer["objects"], order.tolist(), strict=True):
            assert mine["score"] == pytest.approx(float(theirs["scores"][place]))
            assert mine["label"] == NAMES[int(theirs["labels"][place])]
            box = theirs["boxes"][place].clamp(min=0).minimum(torch.tensor([*size, *size])).tolist()
            assert list(mine["box"].values()) == pytest.approx(box, abs=1e-3)


def test_scores_are_the_same_however_a_split_is_cut(rows: Any) -> None:
    task = _task()
    model, read = _built(task, _rt_detr)
    examples, found = _examples(task, rows, read), []
    for size in (5, 2):
        pairs = []
        for start in range(0, 5, size):
            batch = as_batch(task, read, examples[start : start + size], training=False)
            with torch.no_grad():
                pairs += task.predict(task.forward(model, batch), batch)
        found.append(task.metrics(pairs, 1.0, Survey(NAMES)))
    assert found[0] == found[1]
    assert set(found[0]) == {*task.metric_names, "per_label"}
    right = [[[label, 0.9, box] for label, _, box in there] for _, there in pairs]
    perfect = task.metrics([(mine, there) for mine, (_, there) in zip(right, pairs, strict=True)], 1.0, Survey(NAMES))
    assert perfect["map"] == perfect["map_50"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("objects", "said"),
    [
        (None, "objects is missing"),
        ("circle", "objects must be"),
        ({"bbox": [[1, 2, 3, 4]]}, "must have the lists bbox and category; it has bbox"),
        ({"bbox": [[1, 2, 3, 4]], "category": []}, "has 1 boxes and 0 categories"),
        (
            {"bbox": [[1, 2, 3, 4], [1, 2, 0, 4]], "category": ["circle", "circle"]},
            r"objects\[1\] \(circle\) has no area",
        ),
        ({"bbox": [[1, 2, 3]], "category": ["circle"]}, r"objects\[0\] must have a bbox of four numbers"),
        ([{"bbox": [1, 2, 3, float("nan")], "category": "circle"}], r"objects\[0\] must have a bbox of four numbers"),
        ([{"bbox": [1, 2, 3, 4]}], r"objects\[0\] has no category"),
        (
            {"bbox": [[1, 2, 3, 4]], "category": ["circel"]},
            r"objects\[0\]: category 'circel' is not in task.labels. Did",
        ),
        ({"bbox": [[1, 2, 3, 4]], "category": [0]}, "To name numbers, map them"),
    ],
)
def test_bad_objects_are_told(objects: Any, said: str) -> None:
    with pytest.raises(BadRow, match=said):
        _task(labels=NAMES).check({"image": {}, "objects": objects})


def test_boxes_outside_of_their_image_are_told_and_a_rounding_is_cut_off(rows: Any) -> None:
    read = reading(*reversed(_rt_detr()[1:]))
    for box in ([60, 1, 9, 9], [-3, 1, 9, 9], [200, 200, 5, 5]):
        row = {
            **rows[0],
            "objects": [{"bbox": [1, 1, 2, 2], "category": "square"}, {"bbox": box, "category": "circle"}],
        }
        with pytest.raises(BadRow, match=r"objects\[1\] \(circle\) reaches from .* outside of its image of 64 x 64"):
            _task().encode(row, Survey(NAMES), read, truncate=True)
    row = {**rows[0], "objects": [{"bbox": [60, 60, 4.4, 4.0], "category": "circle"}]}
    (example,) = _task().encode(row, Survey(NAMES), read, truncate=True)
    assert example["boxes"] == [[60, 60, 64, 64]]


def test_categories_are_learnt_from_both_forms_and_may_be_mapped() -> None:
    rows = [ROW, {"image": {}, "objects": [{"bbox": [1, 2, 3, 4], "category": "arch"}]}]
    assert _task().survey(rows).labels == ["arch", "circle"]
    mapped = _task(labels={0: "mask", 1: "glove"})
    numbered = {"image": {}, "objects": {"bbox": [[1, 2, 3, 4]], "category": [1]}}
    mapped.check(numbered)
    assert mapped.row_labels(numbered) == ["glove"] and mapped.survey([numbered]).unseen == ["mask"]
    with pytest.raises(BadRow, match=r"category 'circle' was never seen in training"):
        _task().check_label(ROW, Survey(["arch"]))
    with pytest.raises(DataError, match="no training image has an object"):
        _task().survey([{"image": {}, "objects": []}])
    with pytest.raises(ConfigError, match="labels must be distinct"):
        _task(labels=["a", "a"])


def test_a_model_whose_loss_is_not_a_sum_over_images_is_refused(rows: Any) -> None:
    read = reading(_processor(False), type("Config", (), {"model_type": "d_fine"})())
    with pytest.raises(ConfigError, match=r"model.path: is of the type d_fine.*known are conditional_detr"):
        _examples(_task(), rows, read)
