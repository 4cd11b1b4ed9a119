"""A folder of documents as passages: each section of a Markdown file, long ones in parts."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from onecurve.errors import ConfigError

LONGEST = 120
"""Words of a passage, at most, but for a longer sentence."""
_ENDINGS = (".md", ".txt")


@dataclass(frozen=True)
class Passage:
    """A part of a document that is found and shown as one."""

    document: str
    """The file, relative to the folder."""
    title: str
    section: str
    """Empty above the first heading of the second level."""
    text: str

    @property
    def whole(self) -> str:
        """The text under its headings, as it is embedded and shown to the language model."""
        return f"{self.title}: {self.section}\n{self.text}" if self.section else f"{self.title}\n{self.text}"


def read_documents(folder: Path) -> list[Passage]:
    """Return the passages of all .md and .txt files of a folder and those below, by file name.

    Raises:
        ConfigError: No such folder, no text in it, or a file that is not UTF-8.
    """
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {str(folder)!r} of documents.")
    found: list[Passage] = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in _ENDINGS and path.is_file()):
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise ConfigError(f"{str(path)!r} is not UTF-8 text.", fix="Save it as UTF-8.") from None
        found += split_document(path.relative_to(folder).as_posix(), text)
    if not found:
        raise ConfigError(f"{str(folder)!r} has no .md or .txt file with text.")
    return found


def split_document(name: str, text: str) -> Iterator[Passage]:
    """Yield a document's passages: its title is the first heading, else the file's name."""
    title, section, is_code = Path(name).stem, "", False
    lines: list[str] = []
    for line in text.splitlines():
        is_code ^= line.startswith("```")
        heading = None if is_code else re.match(r"(##?)\s+(\S.*)", line)
        if heading is None:
            lines.append(line)
            continue
        yield from (Passage(name, title, section, part) for part in _parts("\n".join(lines)))
        lines = []
        section = heading[2].strip() if heading[1] == "##" else ""
        title = title if section else heading[2].strip()
    yield from (Passage(name, title, section, part) for part in _parts("\n".join(lines)))


def _parts(text: str) -> Iterator[str]:
    """Yield a section's paragraphs and sentences, as many together as `LONGEST` holds."""
    part: list[str] = []
    for sentence in sentences(text):
        if part and len(" ".join([*part, sentence]).split()) > LONGEST:
            yield " ".join(part)
            part = []
        part.append(sentence)
    if part:
        yield " ".join(part)


def sentences(text: str) -> list[str]:
    """Split a text after the marks that end a sentence, and at empty lines and list items."""
    blocks = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.)\s)", text)
    found = [part for block in blocks for part in re.split(r"(?<=[.!?])\s+(?=[A-Z0-9\"(\\])", " ".join(block.split()))]
    return [part for part in found if part]
