"""CoNLL files: one word per line with its columns, and a blank line between sentences."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from onecurve.config import DataSection
from onecurve.data.rows import Broken, Columns, Located
from onecurve.data.text_files import MARK, open_text, undecodable
from onecurve.errors import DataError

_UNIVERSAL = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
"""The columns of CoNLL-U (universaldependencies.org/format.html)."""
_DOCUMENT = "-DOCSTART-"


def read_conll(path: Path, settings: DataSection, columns: Columns) -> Iterator[Located | Broken]:
    """Yield a row for each sentence: lists of what its columns hold.

    Columns are named by position, from 0 or, from behind, -1; those of a .conllu file also by CoNLL-U's names. `tokens`
    is the first column (CoNLL-U's form) and `tags` the last (CoNLL-U's upos), unless `data.columns` says otherwise.
    They are separated by tabs where a sentence has any, else by spaces. A line of -DOCSTART- is no sentence; in a
    .conllu file neither are comments, nor words of several tokens and empty nodes (ids such as 3-4 and 8.1).

    Raises:
        DataError: `data.columns` names a column that the file cannot have.
    """
    is_universal = path.suffixes[-2:][0] == ".conllu" if path.suffix == ".gz" else path.suffix == ".conllu"
    with open_text(path, settings.encoding) as file:
        numbered = groupby(enumerate(file, 1), key=lambda line: not line[1].isspace())
        for lines in (list(lines) for is_filled, lines in numbered if is_filled):
            if found := _sentence(lines, is_universal, settings, columns, path):
                yield found


def _sentence(
    lines: list[tuple[int, str]], is_universal: bool, settings: DataSection, columns: Columns, path: Path
) -> Located | Broken | None:
    words: list[list[str]] = []
    separator = "\t" if any("\t" in line for _, line in lines) else None
    for number, line in lines:
        if MARK in line:
            return Broken(f"line {number}", undecodable(settings.encoding))
        fields = line.rstrip("\r\n").split(separator)
        if fields[0].startswith(_DOCUMENT) or (is_universal and not _is_word(fields[0])):
            continue
        if words and len(fields) != len(words[0]):
            return Broken(f"line {number}", f"has {len(fields)} columns where its sentence began with {len(words[0])}.")
        words.append(fields)
    if not words:
        return None
    places = {name: _place(name, len(words[0]), is_universal, path) for name in columns.names.values()}
    row = {name: [fields[place] for fields in words] for name, place in places.items() if place is not None}
    return Located(f"line {lines[0][0]}", row)


def _is_word(first: str) -> bool:
    return first.isdigit()


def _place(name: str, width: int, is_universal: bool, path: Path) -> int | None:
    """Return where a column stands; None where this file has none of that name."""
    if name.lstrip("-").isdigit():
        place = int(name)
        if not -width <= place < width:
            raise DataError(f"has {width} columns; data.columns asks for number {name}.", where=str(path))
        return place
    if is_universal and name.lower() in _UNIVERSAL:
        return _UNIVERSAL.index(name.lower())
    if name == "tokens":
        return _UNIVERSAL.index("form") if is_universal else 0
    if name == "tags":
        return _UNIVERSAL.index("upos") if is_universal else width - 1
    return None
