"""Decodes the bytes of an image file to upright RGB pixels, or says why it cannot."""

import struct
import zlib
from io import BytesIO
from typing import TYPE_CHECKING, Any

from onecurve.errors import BadRow

if TYPE_CHECKING:
    from PIL import Image

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO")
"""What may be opened. Pillow knows more: EPS, which runs another program; TGA, which any bytes may be taken for."""
_RAISED = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, OverflowError, MemoryError),
    *(LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError),
)
"""What Pillow's readers raise on files that are damaged, beside its own error for files that are too large."""
_ORIENTATION = 0x0112
_SWAPS_SIDES = (5, 6, 7, 8)
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N")
_NOT_RGB = {
    "I": "has 32-bit pixels of no known range: convert it to 8 or 16 bits per channel",
    "F": "has 32-bit pixels of no known range: convert it to 8 or 16 bits per channel",
    "LAB": "has Lab colours, which cannot be read as RGB: convert it",
}
_WHITE = (255, 255, 255, 255)


def decode_image(data: bytes, name: str = "image") -> "Image.Image":
    """Decode an image file, fully, as a viewer shows it.

    Turned as its EXIF orientation says; transparent pixels on white; of an animation the first frame; 16-bit greys
    scaled to 8 bits.

    Args:
        data: The file's bytes.
        name: What messages call it.

    Returns:
        A Pillow image, mode RGB, loaded.

    Raises:
        BadRow: No image, truncated or damaged, too large to be decoded safely, or with pixels of unknown range.
    """
    from PIL import Image

    try:
        with _open(data) as image:
            image.load()
            if image.mode in _NOT_RGB:
                raise BadRow(f"{name} {_NOT_RGB[image.mode]}")
            return _rgb(_turned(image))
    except BadRow:
        raise
    except Image.DecompressionBombError:
        raise _too_large(name) from None
    except _RAISED as error:
        raise _unreadable(data, name, error) from None


def image_size(data: bytes, name: str = "image") -> tuple[int, int]:
    """Return an image file's width and height in pixels, upright, from its header: no pixel is decoded.

    Raises:
        BadRow: No image, or too large to be decoded safely.
    """
    from PIL import Image

    try:
        with _open(data) as image:
            (width, height), orientation = image.size, _orientation(image)
    except Image.DecompressionBombError:
        raise _too_large(name) from None
    except _RAISED as error:
        raise _unreadable(data, name, error) from None
    return (height, width) if orientation in _SWAPS_SIDES else (width, height)


def plain_png(colour: tuple[int, int, int], size: int = 16) -> bytes:
    """Return a square PNG file of one colour, made without Pillow: a sample for a task to begin with."""
    return boxed_png(bytes(colour), bytes(colour), (0, 0, 0, 0), size)


def boxed_png(inside: bytes, outside: bytes, box: tuple[int, int, int, int], size: int = 32) -> bytes:
    """Return a square PNG file with a filled box, made without Pillow: a sample for a task to begin with.

    Args:
        inside: The pixels in the box: one byte, grey, or three, RGB.
        outside: The others.
        box: Left, top, width, height.
        size: Of the square.
    """
    left, top, width, height = box
    plain, crossed = outside * size, outside * left + inside * width + outside * (size - left - width)
    lines = b"".join(b"\0" + (crossed if top <= number < top + height else plain) for number in range(size))
    header = b"IHDR" + struct.pack(">IIBBBBB", size, size, 8, 0 if len(inside) == 1 else 2, 0, 0, 0)
    pixels = b"IDAT" + zlib.compress(lines)
    chunks = (header, pixels, b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


def boxed_samples() -> list[tuple[tuple[int, int, int, int], bytes]]:
    """Return a few boxes, each with an image of it."""
    boxes = ((4, 4, 12, 12), (10, 6, 16, 12), (2, 16, 10, 10), (14, 14, 14, 16)) * 3
    return [(box, boxed_png(b"\xc8\x28\x28", b"\x14\x14\x14", box)) for box in boxes]


def _open(data: bytes) -> Any:
    from PIL import Image

    return Image.open(BytesIO(data), formats=_FORMATS)


def _orientation(image: Any) -> int:
    """Return the EXIF orientation, 1 to 8; 1 (upright) where the EXIF data cannot be read, as viewers do."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except _RAISED:
        return 1


def _turned(image: Any) -> Any:
    """Return the image upright; see the EXIF standard, tag 0x0112, for what the eight orientations are."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    turn = turns.get(_orientation(image))
    return image.copy() if turn is None else image.transpose(turn)


def _rgb(image: Any) -> Any:
    from PIL import Image

    if image.mode in _DEEP:
        import numpy

        return Image.fromarray((numpy.asarray(image) // 257).astype("uint8")).convert("RGB")  # 65535 becomes 255
    if image.has_transparency_data:
        pixels = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", pixels.size, _WHITE), pixels).convert("RGB")
    return image.convert("RGB")


def _too_large(name: str) -> BadRow:
    from PIL import Image

    limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    return BadRow(f"{name} has more than {limit:,} pixels, the most that is decoded: make it smaller")


def _unreadable(data: bytes, name: str, error: BaseException) -> BadRow:
    return BadRow(f"{name} is not an image that can be read: {_reason(data, error)}")


def _reason(data: bytes, error: BaseException) -> str:
    from PIL import UnidentifiedImageError

    if not data:
        return "the file is empty"
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"hevc"):
        return "it is a HEIC photo, which Pillow cannot read; convert it to JPEG"
    if isinstance(error, UnidentifiedImageError):
        return "its bytes are of no known image format (JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, AVIF, JPEG 2000, ICO)"
    if "truncated" in str(error).lower() or isinstance(error, EOFError):
        return "the file is truncated"
    return f"the file is damaged ({error or type(error).__name__})"
