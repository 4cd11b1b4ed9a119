import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from onecurve.config import DataSection
from onecurve.data import Data, Loader, load_data
from onecurve.data.collation_workers import num_workers
from onecurve.data.plan import BatchPlan
from onecurve.errors import DataError, TrainingError
from onecurve.tasks import base
from tests.data.test_media import write
from tests.readings import reading


class Noisy(base.Task):
    """A task whose examples are read from files, with noise that is their own."""

    columns: ClassVar[Mapping[str, str]] = {"image": "an image", "label": "its label"}
    media: ClassVar[Mapping[str, str]] = {"image": "image"}
    packages: ClassVar[frozenset[str]] = frozenset({"PIL"})

    def survey(self, rows: Any) -> base.Survey:
        return base.Survey(sorted({row["label"] for row in rows}))

    def encode(self, row: Any, survey: Any, reading: Any, truncate: bool) -> list[base.Example]:
        return [{"image": row["image"], "num_items": 1}]

    def length(self, example: base.Example) -> int:
        return 1

    def transform(self, example: base.Example, rng: np.random.Generator, training: bool, reading: Any) -> base.Example:
        from onecurve.content.media import read_media

        if b"poison" in read_media(example["image"]):
            raise DataError("is poison")
        return {"noise": rng.random(), "training": training, "pid": os.getpid()}

    def collate(self, examples: Sequence[base.Example], reading: Any) -> base.Batch:
        return {name: torch.tensor([one[name] for one in examples]) for name in examples[0]}

    def num_items(self, batch: base.Batch) -> int:
        return len(batch["noise"])

    def loss_sum(self, outputs: Any, batch: base.Batch) -> torch.Tensor:
        return outputs.sum()

    def describe(self, example: base.Example, survey: Any, tokenizer: Any) -> str:
        return ""

    def auto_model(self) -> type:
        return object

    def without_effect(self, reading: Any = None) -> Mapping[str, str]:
        return {}


def load(folder: Path, workers: int = 0) -> Data:
    for number in range(12):
        if not (folder / f"train/{number % 2}/{number}.png").exists():
            write(folder / f"train/{number % 2}/{number}.png", number)
            write(folder / f"dev/{number % 2}/{number}.png", 100 + number)
    section = DataSection(train=str(folder), eval=str(folder), cache_dir=str(folder / ".cache"), workers=workers)
    processor = SimpleNamespace(save_pretrained=lambda folder: None)
    return load_data(section, Noisy(base.Settings()), reading(processor), 7)


def noise(data: Data, size: int, epochs: Sequence[int] = (1,), split: str = "train", world_size: int = 1) -> dict:
    """Each example's draws in some passes, by (pass, example)."""
    found: dict[tuple[int, int], float] = {}
    chosen = data.train if split == "train" else data.eval
    assert chosen is not None
    plan = BatchPlan(chosen.num_items, 7, 6, size, max_steps=20)
    for rank in range(world_size):
        accelerator: Any = SimpleNamespace(process_index=rank, num_processes=world_size, device=torch.device("cpu"))
        loader = Loader(chosen, Noisy(base.Settings()), reading(None), accelerator)
        for step in (plan.step(2 * epoch - half) for epoch in epochs for half in (1, 0)):
            for micro_batch in loader.micro_batches(step):
                ids = step.at(micro_batch.position)[0].tolist()
                found |= {
                    (step.epoch, one): value
                    for one, value in zip(ids, micro_batch.batch["noise"].tolist(), strict=True)
                }
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return load(tmp_path_factory.mktemp("images"))


def test_what_is_drawn_for_an_example_depends_on_its_pass_alone(data: Data) -> None:
    first = noise(data, 6)
    assert len(set(first.values())) == 12
    assert noise(data, 1) == noise(data, 4) == noise(data, 2, world_size=3) == first
    assert noise(data, 2, epochs=(2, 1)) == noise(data, 3, epochs=(1,)) | noise(data, 3, epochs=(2,))
    later = noise(data, 6, epochs=(2,))
    assert not {value for value in later.values()} & set(first.values())


def test_scoring_draws_the_same_whatever_the_seed_and_the_pass(data: Data) -> None:
    of_dev = noise(data, 6, split="eval")
    assert {one: value for (_, one), value in of_dev.items()} == {
        one: value for (_, one), value in noise(data, 1, epochs=(3,), split="eval").items()
    }
    assert not set(of_dev.values()) & set(noise(data, 6).values())


def test_workers_make_the_same_batches_in_processes_of_their_own(data: Data, tmp_path: Path) -> None:
    with_workers = load(tmp_path, workers=2)
    assert with_workers.train.workers is not None and data.train.workers is None
    assert with_workers.fingerprint == data.fingerprint, "where the files lie does not count"
    assert noise(with_workers, 2, epochs=(1, 3, 2)) == noise(data, 5, epochs=(1, 2, 3))
    workers = with_workers.train.workers
    step = BatchPlan(with_workers.train.num_items, 7, 6, 2, max_steps=3).step(1)
    accelerator: Any = SimpleNamespace(process_index=0, num_processes=1, device=torch.device("cpu"))
    loader = Loader(with_workers.train, Noisy(base.Settings()), reading(None), accelerator)
    pids = {int(pid) for one in loader.micro_batches(step) for pid in one.batch["pid"]}
    assert os.getpid() not in pids
    os.kill(min(pids), 9)
    with pytest.raises(TrainingError, match="one of 2 processes that prepare the data was killed"):
        for _ in range(50):
            list(loader.micro_batches(step))
    assert workers.count == 2


def test_what_a_worker_cannot_read_is_told_as_it_would_be_without_it(tmp_path: Path) -> None:
    data = load(tmp_path, workers=1)
    (tmp_path / "train/0/4.png").write_bytes(b"other bytes")
    with pytest.raises(DataError, match=r"4.png: has changed since the data were read"):
        noise(data, 2)


def test_the_key_tells_of_the_files_contents_and_not_of_their_place(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = load(tmp_path / "a"), load(tmp_path / "b")
    assert one.fingerprint == other.fingerprint
    assert one.train[0]["image"]["path"].startswith(str(tmp_path / "a"))
    assert other.train[0]["image"]["path"].startswith(str(tmp_path / "b"))
    assert load(tmp_path / "a").cached
    write(tmp_path / "a/train/0/4.png", 99)
    assert load(tmp_path / "a").fingerprint != one.fingerprint


def test_a_listed_file_that_changed_is_told_when_it_is_read(tmp_path: Path) -> None:
    listed = tmp_path / "rows.jsonl"
    for number in range(4):
        write(tmp_path / f"{number}.png", number)
    listed.write_text("".join(json.dumps({"image": f"{n}.png", "label": str(n % 2)}) + "\n" for n in range(4)))
    section = DataSection(train=str(listed), cache_dir=str(tmp_path / ".cache"))
    processor: Any = SimpleNamespace(save_pretrained=lambda folder: None)
    data = load_data(section, Noisy(base.Settings()), reading(processor), 7)
    write(tmp_path / "2.png", 9)
    accelerator: Any = SimpleNamespace(process_index=0, num_processes=1, device=torch.device("cpu"))
    loader = Loader(data.train, Noisy(base.Settings()), reading(processor), accelerator)
    step = BatchPlan(data.train.num_items, 7, 4, 4, max_steps=1).step(1)
    with pytest.raises(DataError, match=r"2.png: has changed since the data were read"):
        list(loader.micro_batches(step))


def test_workers_are_for_tasks_that_transform() -> None:
    from onecurve.tasks.text_classification import Task, TextClassificationSettings

    assert num_workers(3, Noisy(base.Settings())) == 3
    assert num_workers(3, Task(TextClassificationSettings())) == 0
    assert num_workers("auto", Noisy(base.Settings())) == 0, "there is no GPU here"
