"""Image files as people keep them, and each way in which one cannot be read."""

import io
import struct
import zlib
from typing import Any

import numpy
import pytest
from PIL import Image

from onecurve.content.images import boxed_png, decode_image, image_size, plain_png
from onecurve.errors import BadRow

CORNERS = numpy.zeros((4, 6, 3), numpy.uint8)
CORNERS[:2, :3], CORNERS[:2, 3:], CORNERS[2:, :3] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
"""Red, green over blue, black; 6 wide and 4 high."""


def saved(image: Any, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, numpy.ndarray) else image).save(file, kind, **options)
    return file.getvalue()


def pixels(data: bytes) -> Any:
    image = decode_image(data)
    assert image.mode == "RGB"
    assert image.size == image_size(data)
    return numpy.asarray(image)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF", "PPM", "WEBP", "ICO", "JPEG2000"])
def test_formats_without_loss_give_the_pixels_that_were_saved(kind):
    image = numpy.kron(CORNERS, numpy.ones((8, 8, 1), numpy.uint8))
    image = image[:32, :32] if kind == "ICO" else image
    options = {"WEBP": {"lossless": True}, "ICO": {"sizes": [(32, 32)]}}.get(kind, {})
    assert numpy.array_equal(pixels(saved(image, kind, **options)), image)


@pytest.mark.parametrize("kind", ["JPEG", "AVIF"])
def test_formats_with_loss_come_close(kind):
    image = numpy.kron(CORNERS, numpy.ones((16, 16, 1), numpy.uint8))
    assert numpy.abs(pixels(saved(image, kind)).astype(int) - image).mean() < 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_as_its_exif_data_say(orientation):
    """Stored as a camera that is held otherwise stores it, each comes out as the one scene."""
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: numpy.rot90(a, 1),
        7: lambda a: numpy.rot90(a.transpose(1, 0, 2), 2),
        8: lambda a: numpy.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = numpy.ascontiguousarray(undo[orientation](CORNERS))
    assert numpy.array_equal(pixels(saved(stored, exif=exif)), CORNERS)


def test_exif_data_that_cannot_be_read_leave_the_photo_as_it_is():
    assert numpy.array_equal(pixels(saved(CORNERS, exif=b"Exif\0\0nonsense")), CORNERS)


def test_transparent_pixels_are_on_white():
    alpha = numpy.full((4, 6, 1), 255, numpy.uint8)
    alpha[0, 0], alpha[0, 1] = 0, 128
    found = pixels(saved(numpy.concatenate([CORNERS, alpha], 2)))
    assert found[0, 0].tolist() == [255, 255, 255]
    assert numpy.abs(found[0, 1].astype(int) - [255, 127, 127]).max() <= 1
    assert numpy.array_equal(found[1:], CORNERS[1:])


def test_a_palette_with_a_transparent_colour_is_on_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert pixels(saved(image)).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert pixels(saved(image, transparency=0)).tolist() == [[[255, 255, 255], [40, 50, 60]]]
    assert pixels(saved(image, "GIF", transparency=0))[0, 0].tolist() == [255, 255, 255]


def test_sixteen_bits_are_scaled_to_eight():
    grey = numpy.array([[0, 257, 128 * 257, 65535]], numpy.uint16)
    for kind in ("PNG", "TIFF"):
        assert pixels(saved(grey, kind))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("mode", "kind"), [("1", "PNG"), ("L", "JPEG"), ("LA", "PNG"), ("CMYK", "JPEG"), ("LAB", "TIFF")]
)
def test_other_modes_become_rgb(mode, kind):
    white = {"CMYK": (0, 0, 0, 0), "LA": (255, 255), "LAB": (255, 128, 128)}.get(mode, 255)
    data = saved(Image.new(mode, (8, 8), white), kind)
    if mode == "LAB":
        with pytest.raises(BadRow, match="cannot be read as RGB"):
            decode_image(data)
    else:
        assert pixels(data).min() >= 253


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "PNG", "WEBP"):
        data = saved(
            frames[0], kind, save_all=True, append_images=frames[1:], **{"WEBP": {"lossless": True}}.get(kind, {})
        )
        assert pixels(data)[0, 0].tolist() == [255, 0, 0]


def bomb() -> bytes:
    """A PNG of a few bytes whose header tells of 40,000 x 40,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    chunks = [header, b"IDAT"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


NOISE = numpy.random.default_rng(0).integers(0, 256, (64, 64, 3), numpy.uint8)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "is not an image that can be read: the file is empty"),
        (b"image,label\na.png,cat\n", "its bytes are of no known image format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "its bytes are of no known image format"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC photo, which Pillow cannot read"),
        (saved(NOISE)[:5000], "the file is truncated"),
        (saved(NOISE, "JPEG")[:900], "the file is truncated"),
        (saved(NOISE)[:200] + b"\0" * 200 + saved(NOISE)[400:], "the file is damaged"),
        (saved(Image.new("F", (2, 2)), "TIFF"), "32-bit pixels of no known range"),
        (bomb(), "has more than 178,956,970 pixels"),
    ],
)
def test_what_cannot_be_read_is_told_why(data, why):
    with pytest.raises(BadRow, match=rf"^photo.png .*{why}"):
        decode_image(data, "photo.png")


def test_a_box_is_where_it_was_asked_for():
    expected = numpy.zeros((5, 5), numpy.uint8)
    expected[1:4, 2:4] = 7
    drawn = Image.open(io.BytesIO(boxed_png(b"\7", b"\0", (2, 1, 2, 3), 5)))
    assert drawn.mode == "L" and numpy.array_equal(numpy.asarray(drawn), expected)


def test_a_plain_image_is_one_that_pillow_reads():
    assert numpy.array_equal(pixels(plain_png((1, 2, 3), 5)), numpy.full((5, 5, 3), (1, 2, 3)))


@pytest.mark.parametrize("data", [b"", b"no image", bomb()])
def test_neither_has_it_a_size(data):
    with pytest.raises(BadRow, match=r"^image "):
        image_size(data)


def test_a_damaged_file_is_never_a_traceback():
    rng = numpy.random.default_rng(0)
    files = [saved(NOISE[:24, :31], kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "JPEG2000", "ICO")]
    refused = 0
    for data in files * 12:
        damaged = bytearray(data[: rng.integers(len(data) // 4, len(data) + 1)])
        for place in rng.integers(0, min(len(damaged), 300), 4):
            damaged[place] = rng.integers(256)
        try:
            decode_image(bytes(damaged))
        except BadRow:
            refused += 1
    assert refused > 40
