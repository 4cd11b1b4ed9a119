"""Augmentations: what is drawn, and that image, mask and boxes go the same way."""

import colorsys

import numpy
import pytest
from numpy.random import Generator, default_rng
from PIL import Image

from onecurve.content.augmentation import (
    Geometry,
    Jitter,
    draw_angle,
    draw_crop,
    draw_erased,
    draw_flip,
    draw_jitter,
    draw_window,
    erase,
    whole,
)


def everything(rng: Generator) -> tuple:
    return (
        draw_crop(rng, (64, 48)),
        draw_window(rng, (64, 48), (80, 20)),
        draw_flip(rng, 0.5),
        draw_angle(rng, 15.0),
        draw_jitter(rng, 0.4, 0.4, 0.4, 0.1),
        draw_erased(rng, (64, 48)),
    )


def test_the_same_generator_draws_the_same_whatever_else_was_drawn():
    first = everything(default_rng(7))
    numpy.random.seed(1)
    assert everything(default_rng(7)) == first
    assert everything(default_rng(8)) != first


def test_a_drawn_crop_has_the_area_and_the_ratio_asked_for_and_lies_inside():
    rng = default_rng(0)
    shares, aspects = [], []
    for _ in range(500):
        left, top, right, bottom = draw_crop(rng, (400, 300), scale=(0.2, 0.5), ratio=(0.5, 2.0))
        assert 0 <= left < right <= 400
        assert 0 <= top < bottom <= 300
        shares.append((right - left) * (bottom - top) / 120_000)
        aspects.append((right - left) / (bottom - top))
    assert (0.19 < min(shares) < 0.22) and (0.46 < max(shares) < 0.51)
    assert (0.49 < min(aspects) < 0.55) and (1.8 < max(aspects) < 2.02)
    assert abs(numpy.log(aspects).mean()) < 0.06  # uniform in the logarithm: as often tall as wide


@pytest.mark.parametrize(("size", "ratio", "box"), [((1, 100), 3 / 4, (0, 49, 1, 50)), ((100, 2), 1.5, (48, 0, 51, 2))])
def test_a_crop_that_never_fits_is_taken_from_the_middle(size, ratio, box):
    assert draw_crop(default_rng(0), size, scale=(1.0, 1.0), ratio=(ratio, ratio)) == box


@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("angle", [0.0, 90.0, 20.0])
def test_image_mask_and_boxes_go_the_same_way(flips, angle):
    size, box = (120, 120), (40, 30, 60, 70)
    pixels = numpy.zeros((120, 120), numpy.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 200
    geometry = Geometry(size, (20, 10, 110, 100), (180, 45), angle, *flips)
    found, shares = geometry.boxes([box])
    mask = numpy.asarray(geometry.mask(Image.fromarray(pixels), fill=0))
    image = numpy.asarray(geometry.image(Image.fromarray(pixels).convert("RGB"), Image.Resampling.NEAREST))
    rows, columns = numpy.nonzero(mask)
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert numpy.abs(found[0] - seen).max() <= 3, (found, seen)  # an edge is within a pixel of the original
    assert shares == pytest.approx([1.0])
    assert image.shape == (45, 180, 3)
    assert numpy.mean((image[..., 0] > 100) == (mask > 0)) > 0.99


def test_a_box_is_clipped_to_the_crop_and_told_how_much_is_left():
    geometry = Geometry((100, 100), (50, 0, 100, 100), (50, 50))
    boxes, shares = geometry.boxes([[40, 20, 60, 40], [0, 0, 10, 10], [60, 60, 60, 80]])
    assert boxes[0].tolist() == [0, 10, 10, 20]
    assert shares.tolist() == [0.5, 0.0, 0.0]
    assert geometry.boxes([])[0].shape == (0, 4)


def test_what_lies_outside_of_the_original_is_filled():
    geometry = Geometry((4, 4), (-2, 0, 4, 4), (6, 4))
    mask = numpy.asarray(geometry.mask(Image.new("L", (4, 4), 3), fill=255))
    assert mask.tolist() == [[255, 255, 3, 3, 3, 3]] * 4
    turned = Geometry((9, 9), whole((9, 9)), (9, 9), angle=45.0)
    assert numpy.asarray(turned.mask(Image.new("L", (9, 9), 3), fill=255))[0, 0] == 255


def test_colours_change_as_much_as_asked():
    image = Image.new("RGB", (2, 2), (100, 50, 20))
    assert Jitter([("brightness", 1.5)]).apply(image).getpixel((0, 0)) == (150, 75, 30)
    assert Jitter([("contrast", 0.0)]).apply(image).getpixel((0, 0)) == (62, 62, 62)
    assert Jitter([("saturation", 0.0)]).apply(image).getpixel((0, 0)) == (62, 62, 62)
    hue, *rest = colorsys.rgb_to_hsv(100 / 255, 50 / 255, 20 / 255)
    turned = [round(255 * part) for part in colorsys.hsv_to_rgb((hue + 0.25) % 1, *rest)]
    assert numpy.abs(numpy.subtract(Jitter([("hue", 0.25)]).apply(image).getpixel((0, 0)), turned)).max() <= 3


def test_jitter_draws_factors_in_range_in_any_order_and_only_what_is_asked_for():
    rng = default_rng(0)
    drawn = [draw_jitter(rng, brightness=0.4, saturation=2.0, hue=0.1).steps for _ in range(300)]
    assert {tuple(name for name, _ in steps) for steps in drawn} >= {
        ("brightness", "saturation", "hue"),
        ("hue", "saturation", "brightness"),
    }
    for name, low, high in (("brightness", 0.6, 1.4), ("saturation", 0.0, 3.0), ("hue", -0.1, 0.1)):
        amounts = [dict(steps)[name] for steps in drawn]
        assert low <= min(amounts) < max(amounts) <= high
        assert max(amounts) - min(amounts) > 0.9 * (high - low)
    assert draw_jitter(rng).steps == []


def test_a_rectangle_is_erased_in_a_copy():
    pixels = numpy.ones((3, 40, 60), numpy.float32)
    box = draw_erased(default_rng(0), (60, 40))
    assert box is not None
    left, top, right, bottom = box
    erased = erase(pixels, box)
    assert erased[:, top:bottom, left:right].sum() == 0
    assert erased.sum() == pixels.sum() - 3 * (right - left) * (bottom - top)
    assert pixels.all()
    assert draw_erased(default_rng(0), (1, 1)) is None
