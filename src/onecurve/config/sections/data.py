"""The data of a run, and what happens to invalid rows and long examples."""

from typing import Literal

from pydantic import Field

from onecurve.config.sections.base import Section


class DataSection(Section):
    train: str
    """Training data: a file, a folder or a hub name (`org/name` or `org/name:split`)."""
    eval: str | None = None
    """The dev split, evaluated during training."""
    test: str | None = None
    """The test split, evaluated once at the end."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Name in the task -> column in the file (its index, from 0, where a CSV has no header); '' leaves it out."""
    format: Literal["auto", "jsonl", "json", "csv", "tsv", "parquet", "text", "conll", "parallel"] = "auto"
    """auto: from the file's suffix. parallel: one file per column, matched line by line; `columns` gives the suffixes,
    such as {source: en, target: de}, and `train`, `eval` and `test` give the path without the suffix."""
    encoding: str = "utf-8"
    """Character encoding of text files."""
    header: bool = True
    """Whether the first row of a CSV or TSV file holds the column names."""
    quoting: Literal["auto", "minimal", "none"] = "auto"
    """Quotes in CSV and TSV. minimal: quotes enclose fields. none: quotes are plain characters, as in GLUE. auto:
    minimal, except for a TSV where some quotes do not enclose a field."""
    sample_by: Literal["document", "paragraph", "line"] = "document"
    """What counts as one row of a plain text file."""
    hub_config: str | None = None
    """Configuration (subset) of a hub dataset that has several."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What to do with an invalid row: stop with an error, or skip it. Skipped rows are counted and reported."""
    on_long: Literal["error", "truncate", "drop"] = "error"
    """What to do with an example longer than `max_length`. Truncated and dropped examples are counted and reported."""
    max_length: int | None = Field(default=None, gt=1)
    """Maximum tokens per example; default: the model's own limit."""
    cache_dir: str | None = None
    """Cache folder for encoded examples; default: the user's cache directory."""
