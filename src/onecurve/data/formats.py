"""File formats: each yields its rows with their line or row number."""

import json
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from onecurve.config import DataSection
from onecurve.data.class_labels import by_name, declared, of_schema, with_labels
from onecurve.data.coco import coco_rows, is_coco
from onecurve.data.conll import read_conll
from onecurve.data.delimited import Split, are_quoted, split_literally, split_quoted
from onecurve.data.rows import Broken, Columns, Located
from onecurve.data.text_files import MARK, open_text, undecodable
from onecurve.errors import ConfigError, DataError

Records = Iterator[Located | Broken]
Reader = Callable[[Path, DataSection, Columns], Records]

SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "text",
    ".text": "text",
    ".conll": "conll",
    ".conllu": "conll",
    ".iob": "conll",
    ".bio": "conll",
}
"""What `data.format: auto` makes of a suffix; `.gz` may follow all but Parquet's."""

_PARQUET_ROWS = 1024


def format_of(path: Path) -> str | None:
    """Return the format a file's suffix tells; None when it tells nothing."""
    return SUFFIXES.get((path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower())


def check_encoding(encoding: str) -> None:
    """Refuse an encoding Python does not know.

    Raises:
        ConfigError: No text encoding has that name.
    """
    try:
        "a".encode(encoding)
    except (LookupError, ValueError):
        raise ConfigError(
            f"no text encoding {encoding!r}; examples are utf-8, utf-16, latin-1, gb18030.", where="data.encoding"
        ) from None


def read_jsonl(path: Path, settings: DataSection, columns: Columns) -> Records:
    """Yield one object a line; blank lines are passed over."""
    with open_text(path, settings.encoding) as file:
        for number, line in enumerate(file, 1):
            if not line.isspace():
                yield _json_line(line, f"line {number}", settings.encoding)


def _json_line(line: str, place: str, encoding: str) -> Located | Broken:
    if MARK in line:
        return Broken(place, undecodable(encoding))
    try:
        return _json_object(json.loads(line.rstrip()), place)
    except json.JSONDecodeError as error:
        return Broken(place, f"invalid JSON: {error.msg} at column {error.colno}.")
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits; brackets 10,000 deep
        return Broken(place, f"invalid JSON: {error}.")


def _json_object(value: Any, place: str) -> Located | Broken:
    if isinstance(value, dict):
        return Located(place, value)
    return Broken(place, f"must be a JSON object with a key per column; got {json.dumps(value)[:60]}.")


def read_json(path: Path, settings: DataSection, columns: Columns) -> Records:
    """Yield the objects of one list, or of the list under `data`; or a row an image of COCO's format."""
    with open_text(path, settings.encoding) as file:
        text = file.read()
    if MARK in text:
        line = text.count("\n", 0, text.index(MARK)) + 1
        raise DataError(undecodable(settings.encoding), where=f"{path}, line {line}")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"invalid JSON: {error}.", where=str(path), fix="If it has one object per line, set data.format: jsonl."
        ) from None
    if is_coco(content):
        yield from coco_rows(content, path)
        return
    if isinstance(content, dict):
        content = content.get("data")
    if not isinstance(content, list):
        raise DataError("must be a list of objects, or an object with that list under 'data'.", where=str(path))
    for number, value in enumerate(content, 1):
        yield _json_object(value, f"row {number}")


def read_csv(path: Path, settings: DataSection, columns: Columns) -> Records:
    """Yield the rows of comma-separated values."""
    return _read_delimited(path, settings, columns, settings.delimiter or ",")


def read_tsv(path: Path, settings: DataSection, columns: Columns) -> Records:
    """Yield the rows of tab-separated values, with quotes as in CSV (spreadsheets, pandas) or as characters (GLUE)."""
    return _read_delimited(path, settings, columns, settings.delimiter or "\t")


def _read_delimited(path: Path, settings: DataSection, columns: Columns, delimiter: str) -> Records:
    optional = [name for name in columns.wanted if columns.is_optional(name)]
    is_quoted = settings.quoting == "minimal"
    if settings.quoting == "auto":
        with open_text(path, settings.encoding, newline="") as file:
            is_quoted = delimiter != "\t" or are_quoted(file, delimiter, path)
    with open_text(path, settings.encoding, newline="") as file:
        if is_quoted:
            rows = split_quoted(file, delimiter, path, trusts_quotes=settings.quoting == "minimal")
        else:
            rows = split_literally(file, delimiter)
        filled = (row for row in rows if row.fields or row.fault)  # a blank line has none
        names: list[str] | None = _header(path, next(filled, None), columns, settings) if settings.header else None
        for row in filled:
            if names is None:
                names = [str(position) for position in range(len(row.fields))]
                _check_delimiter(f"{path}, line {row.line}", row.fields, names, columns, delimiter)
            if fault := _fault(row, len(names), settings, is_quoted):
                yield Broken(f"line {row.line}", fault)
            else:
                record: dict[str, str | None] = dict(zip(names, row.fields, strict=True))
                # CSV cannot tell an empty value from none; where there may be none, that is what it means
                record.update({name: None for name in optional if record.get(name) == ""})
                yield Located(f"line {row.line}", record)


def _fault(row: Split, width: int, settings: DataSection, is_quoted: bool) -> str:
    if row.fault or any(MARK in field for field in row.fields):
        return row.fault or undecodable(settings.encoding)
    if len(row.fields) == width:
        return ""
    fault = f"has {len(row.fields)} fields where the {'header' if settings.header else 'first row'} has {width}."
    if not is_quoted and settings.quoting == "auto" and any('"' in field for field in row.fields):
        fault += " Quotes are plain characters here; data.quoting: minimal reads them as CSV does."
    return fault


def _header(path: Path, row: Split | None, columns: Columns, settings: DataSection) -> list[str] | None:
    if row is None:
        return None
    if fault := _fault(row, len(row.fields), settings, is_quoted=True):
        raise DataError(fault, where=f"{path}, line {row.line}")
    for name in columns.wanted:
        if row.fields.count(name) > 1:
            raise DataError(f"the header has the column '{name}' twice.", where=f"{path}, line {row.line}")
    _check_delimiter(f"{path}, line {row.line}", row.fields, row.fields, columns, settings.delimiter or "")
    return row.fields


_DELIMITERS = {";": "';'", "\t": '"\\t"', "|": "'|'", ",": "','"}
"""What may separate fields, as YAML spells it."""


def _check_delimiter(place: str, fields: list[str], names: list[str], columns: Columns, delimiter: str) -> None:
    """Refuse a first row that is one field where more are needed and another delimiter would make more of it."""
    if len(fields) > 1 or columns.needed <= set(names):
        return
    counts = {mark: fields[0].count(mark) for mark in _DELIMITERS if mark != delimiter}
    mark = max(counts, key=lambda mark: counts[mark])
    if counts[mark]:
        raise DataError(
            f"is one field, {fields[0][:60]!r}, and {len(columns.needed)} columns are needed "
            f"({', '.join(sorted(columns.needed))}).",
            where=place,
            fix=f"If {mark!r} separates the fields, set data.delimiter: {_DELIMITERS[mark]}.",
        )


def read_text(path: Path, settings: DataSection, columns: Columns) -> Records:
    """Yield plain text as the column `text`, by document, paragraph or line."""
    with open_text(path, settings.encoding) as file:
        for place, text in _pieces(file, settings.sample_by):
            if MARK in text:
                yield Broken(place, undecodable(settings.encoding))
            else:
                yield Located(place, {"text": text})


def _pieces(file: IO[str], sample_by: str) -> Iterator[tuple[str, str]]:
    if sample_by == "document":
        yield "", file.read()
        return
    filled = groupby(enumerate(file, 1), key=lambda numbered: not numbered[1].isspace())
    for lines in (lines for is_filled, lines in filled if is_filled):
        if sample_by == "line":
            yield from ((f"line {number}", line.rstrip("\n")) for number, line in lines)
        else:
            number, first = next(lines)
            yield f"line {number}", (first + "".join(line for _, line in lines)).rstrip("\n")


def read_parquet(path: Path, settings: DataSection, columns: Columns) -> Records:
    """Yield the rows of a Parquet file, reading only the columns the task wants."""
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            selected = columns.select(file.schema_arrow.names)
            features = with_labels(of_schema(file.schema_arrow.metadata))
            labels = {name: kind for name, kind in features.items() if name in selected}
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=selected):
                for row in batch.to_pylist():
                    number += 1
                    for name, kind in labels.items():
                        row[name] = by_name(row[name], kind)
                    yield Located(f"row {number}", row)
    except (pa.ArrowException, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise DataError(f"cannot be read as Parquet after row {number}: {reason}", where=str(path)) from None


def parquet_columns(path: Path) -> list[str]:
    """Return the columns of a file that `read_parquet` has read."""
    import pyarrow.parquet as pq

    return list(pq.read_schema(path).names)


def parquet_labels(path: Path, columns: Columns) -> list[list[str]]:
    """Return the label names that a file which `read_parquet` has read declares for the columns that a task reads."""
    import pyarrow.parquet as pq

    return declared(of_schema(pq.read_schema(path).metadata), columns)


READERS: dict[str, Reader] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "tsv": read_tsv,
    "parquet": read_parquet,
    "text": read_text,
    "conll": read_conll,
}

_TEXT = frozenset({"format", "encoding"})
READS: dict[str, frozenset[str]] = {
    **dict.fromkeys(READERS, _TEXT),
    **dict.fromkeys(("csv", "tsv"), _TEXT | {"header", "delimiter", "quoting"}),
    "parquet": frozenset({"format"}),
    "text": _TEXT | {"sample_by"},
}
"""The settings of `data` that each reader goes by, besides `columns`."""
