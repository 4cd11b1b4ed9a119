"""The data of a run, and what happens to invalid rows and long examples."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from onecurve.config.sections.base import Section
from onecurve.config.sections.sources import Format, NamedSet, Quoting, SampleBy, Sets, Sources, check_names, weights_of


def _none_named(value: Any) -> Any:
    """Take null, as the command line takes back a recipe's columns, for no column named."""
    return {} if value is None else value


class DataSection(Section):
    train: Sources
    """Training data: a file, a pattern such as `data/*.jsonl`, a folder, a hub dataset (`imdb`, `org/name`), or a list
    of them; or a folder that `onecurve data encode` wrote. `:split` may follow a folder or a hub name
    (`imdb:train[:90%]`). Or named sources, a map: {news: {path: news.jsonl, weight: 7}, tweets: {path: tweets.csv,
    weight: 3, columns: {text: body}}}; without weights and `temperature`, an epoch has each example of every source
    once."""
    shuffle_window: int | None = Field(default=None, gt=0)
    """Of folders of encoded shards: how many of a folder are shuffled together; default: all, which is the order of the
    same rows not in shards. Memory grows with it, and examples mix only with those of the shards of their window."""
    stage_to: str | None = Field(default=None, min_length=1)
    """A folder on a disk of each node's own, where the shards of the next window are copied to while one is trained on,
    and removed once they are past. Default: shards are read where they lie."""
    temperature: float | None = Field(default=None, ge=0, le=10)
    """In place of weights: each source's share of the draws is in proportion to its number of examples to this power.
    1: by size; 0: the same share each."""
    eval: Sets | None = None
    """The dev split, evaluated during training; `5%`: that share of the training rows, which then train no more. Or
    named sets, a map as in `train` without weights: each is scored apart (`tweets/loss`), and all together."""
    test: Sets | None = None
    """The test split, evaluated once at the end; `5%` and named sets as in `eval`."""
    max_samples: int | dict[Literal["train", "eval", "test"], int] | None = None
    """At most so many rows of each split (of named ones: of each), or by split: {train: 1000}. Drawn at random by
    `seed`, in file order."""
    columns: Annotated[dict[str, str], BeforeValidator(_none_named)] = Field(default_factory=dict)
    """Name in the task -> column in the file (its index, from 0, where a CSV has no header); '' leaves it out."""
    format: Format = "auto"
    """auto: from the file's suffix. media: a folder of images or sounds, each a row whose label is the name of the
    folder it lies in; auto takes a folder so that has no data files, where the task reads such files. parallel: one
    file per column, matched line by line; `columns` gives the suffixes, such as {source: en, target: de}, and `train`,
    `eval` and `test` give the path without the suffix."""
    encoding: str = "utf-8"
    """Character encoding of text files."""
    header: bool = True
    """Whether the first row of a CSV or TSV file holds the column names."""
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    """What separates the fields of CSV and TSV files; default: a comma, or a tab for `.tsv`."""
    quoting: Quoting = "auto"
    """Quotes in CSV and TSV. minimal: quotes enclose fields. none: quotes are plain characters, as in GLUE. auto:
    minimal, except for a TSV where some quotes do not enclose a field."""
    sample_by: SampleBy = "document"
    """What counts as one row of a plain text file."""
    hub_config: str | None = None
    """Configuration (subset) of a hub dataset, or of a clone of one, that has several."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What to do with an invalid row: stop with an error, or skip it. Skipped rows are counted and reported."""
    on_long: Literal["error", "truncate", "drop"] = "error"
    """What to do with an example longer than `max_length`. Truncated and dropped examples are counted and reported."""
    max_length: int | None = Field(default=None, gt=1)
    """Maximum tokens per example; default: the model's own limit."""
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Processes a rank that decode and transform examples ahead of the model; auto: on a GPU the rank's share of the
    cores less one, at most 8, else none."""
    cache_dir: str | None = None
    """Cache folder for encoded examples; default: the user's cache directory."""

    @field_validator("train", "eval", "test", mode="before")
    @classmethod
    def _share_has_a_percent_sign(cls, value: Any) -> Any:
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise ValueError(f"must name data, or a share of the training rows with a percent sign (5%); got {value}")
        if value in ([], "", {}):
            raise ValueError("names no data")
        return value

    @model_validator(mode="after")
    def _splits_agree(self) -> "DataSection":
        if isinstance(self.train, str) and self.train.endswith("%"):
            raise ValueError(f"train must name data; a share ({self.train}) is for eval and test")
        for split in ("train", "eval", "test"):
            check_names(split, self.names(split))
        self._check_weights()
        limits = self.max_samples if isinstance(self.max_samples, dict) else {"train": self.max_samples}
        for split, most in limits.items():
            if most is not None and most < 1:
                raise ValueError(f"max_samples must be at least 1; got {most}")
            if getattr(self, split) is None:
                raise ValueError(f"max_samples has {split}, but data.{split} is not set")
        return self

    def names(self, split: str) -> list[str]:
        """Return the names of a split's sources or sets; none where it is one, without a name.

        A share of named sources is a share of each.
        """
        spec = getattr(self, split)
        if isinstance(spec, str) and spec.strip().endswith("%") and split != "train":
            return self.names("train")
        return list(spec) if isinstance(spec, dict) else []

    def entry(self, split: str, name: str) -> str | list[str] | NamedSet:
        """Return the source or set of a name; of a share without names, the share."""
        spec = getattr(self, split)
        return spec[name] if isinstance(spec, dict) else spec

    def _check_weights(self) -> None:
        names, weights = self.names("train"), weights_of(self.train)
        if weights and (without := [name for name in names if name not in weights]):
            raise ValueError(f"train.{without[0]} has no weight, and {next(iter(weights))} has: give all or none one")
        if weights and self.temperature is not None:
            raise ValueError(f"temperature ({self.temperature:g}) and the weights in train exclude each other")
