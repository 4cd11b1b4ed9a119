"""A machine without network that has datasets of a hub in its cache, as `datasets` itself keeps them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def keep(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    features: dict[str, Any],
    splits: dict[str, list[dict[str, Any]]],
    name: str = "org/name",
) -> None:
    """Put a dataset of these rows into the cache."""
    import datasets

    class Name(datasets.GeneratorBasedBuilder):
        VERSION = "0.0.0"

        def _info(self) -> datasets.DatasetInfo:
            return datasets.DatasetInfo(features=datasets.Features(features))

        def _split_generators(self, _: Any) -> list[datasets.SplitGenerator]:
            return [datasets.SplitGenerator(name=name, gen_kwargs={"rows": rows}) for name, rows in splits.items()]

        def _generate_examples(self, rows: list[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
            yield from enumerate(rows)

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "hub")
    Name(
        cache_dir=str(folder / "hub"), repo_id=name, dataset_name=name.rpartition("/")[2], hash="abc"
    ).download_and_prepare()
