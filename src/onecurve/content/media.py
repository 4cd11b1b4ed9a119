"""Files that rows refer to, images and sounds: known by their place and a hash of their bytes, never copied along."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from onecurve.errors import DataError

Media = dict[str, str]
"""`path`: absolute; `digest`: `media_digest` of the file's bytes."""


def media_digest(content: bytes) -> str:
    """Return the hash by which a file's content is known: BLAKE2b, 128 bits, as hex."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def read_media(media: Mapping[str, str]) -> bytes:
    """Return the bytes of a file that a row refers to.

    Raises:
        DataError: It is gone, or it has changed since the row was read.
    """
    path = Path(media["path"])
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}.", where=str(path)) from None
    if media_digest(content) != media["digest"]:
        raise DataError(
            "has changed since the data were read.",
            where=str(path),
            fix="Put the old file back. To use the new one, touch the table that lists it, if one does, and launch "
            "again; a run that has begun then needs data in train.allow_changes.",
        )
    return content
