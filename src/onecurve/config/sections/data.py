"""What a run reads, and what is done with rows and examples that do not fit."""

from typing import Literal

from pydantic import Field

from onecurve.config.sections.base import Section


class DataSection(Section):
    train: str
    """File, folder or hub name (`org/name` or `org/name:split`)."""
    eval: str | None = None
    """The dev split, scored during training."""
    test: str | None = None
    """The test split, scored once at the end."""
    columns: dict[str, str] = Field(default_factory=dict)
    """What the task needs -> what the file calls it (a position from 0 where a CSV has no header); '': read none."""
    format: Literal["auto", "jsonl", "json", "csv", "tsv", "parquet", "text", "conll", "parallel"] = "auto"
    """auto: by the file's suffix. parallel: a file a column, line by line; `columns` names their suffixes, such as
    {source: en, target: de}, and `train`, `eval` and `test` the path before them."""
    encoding: str = "utf-8"
    """Of text files."""
    header: bool = True
    """Whether the first row of CSV and TSV names the columns."""
    quoting: Literal["auto", "minimal", "none"] = "auto"
    """Quotes in CSV and TSV: minimal, they enclose fields; none, they are plain characters, as in GLUE; auto, minimal
    but for a TSV in which some quotes enclose nothing."""
    sample_by: Literal["document", "paragraph", "line"] = "document"
    """What one row of plain text is."""
    hub_config: str | None = None
    """The configuration of a hub dataset that has several."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What a broken row does; skipped ones are counted and reported."""
    on_long: Literal["error", "truncate", "drop"] = "error"
    """What an example longer than `max_length` does; each one is counted and reported."""
    max_length: int | None = Field(default=None, gt=1)
    """Tokens an example may have; the model's own limit when absent."""
    cache_dir: str | None = None
    """Where encoded examples are kept; the user's cache directory when absent."""
