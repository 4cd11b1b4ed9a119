"""A micro-batch made ahead in a thread is the one that would have been made when asked for."""

import threading
from types import SimpleNamespace
from typing import Any

import accelerate
import pytest
import torch
from accelerate.state import AcceleratorState

from onecurve.config import DataSection
from onecurve.data import BatchPlan, Data, Loader
from onecurve.data.prefetch import Ahead
from onecurve.machine import accelerator
from onecurve.machine.distributed import start
from onecurve.ranks.heartbeat import beat, last_beat
from onecurve.tasks.text_classification import Task, TextClassificationSettings
from tests.data.byte_level import labelled, load, write_jsonl
from tests.readings import padding

NUM_EXAMPLES = 26


class Watched(Task):
    """Notes which thread collates which lengths, and may wait for the loop or fail."""

    def __init__(self) -> None:
        super().__init__(TextClassificationSettings())
        self.threads: list[str] = []
        self.go = threading.Event()
        self.go.set()
        self.fails = False

    def collate(self, examples: Any, reading: Any) -> Any:
        self.threads.append(threading.current_thread().name)
        assert self.go.wait(20)
        if self.fails:
            raise ValueError("a bug in collate")
        return super().collate(examples, reading)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    folder = tmp_path_factory.mktemp("loader")
    path = write_jsonl(folder / "train.jsonl", labelled(*("x" * n for n in range(1, NUM_EXAMPLES + 1))))
    return load(DataSection(train=path, cache_dir=str(folder / "cache")), Task(TextClassificationSettings()))


def loader(data: Data, ahead: bool, rank: int = 0, world_size: int = 1) -> tuple[Loader, Watched]:
    task = Watched()
    accelerator: Any = SimpleNamespace(process_index=rank, num_processes=world_size, device=torch.device("cpu"))
    made = Loader(data.train, task, padding(0), accelerator)
    assert made._ahead is None  # on a CPU there is nothing to hide it behind
    if ahead:
        made.__dict__["_ahead"] = Ahead(made._read, lambda: None)
    return made, task


def read(made: Loader, plan: BatchPlan, numbers: list[int]) -> list[tuple[int, int, bool, list[Any]]]:
    steps = [(number, micro_batch) for number in numbers for micro_batch in made.micro_batches(plan.step(number))]
    return [(number, one.position, one.counts, one.batch["input_ids"].tolist()) for number, one in steps]


def plan_of(data: Data) -> BatchPlan:
    return BatchPlan(data.train.num_items, seed=3, global_batch_size=8, micro_batch_size=2, max_steps=9)


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 3)])
def test_what_is_made_ahead_is_what_would_have_been_made(data: Data, rank: int, world_size: int) -> None:
    numbers = [1, 2, 3, 4, 5, 3, 4, 8, 9, 1]  # goes back, leaves steps out, and comes to the plan's end
    plain, _ = loader(data, False, rank, world_size)
    ahead, task = loader(data, True, rank, world_size)
    expected = read(plain, plan_of(data), numbers)
    assert len({str(batch) for *_, batch in expected}) > 10
    assert read(ahead, plan_of(data), numbers) == expected
    assert set(task.threads) == {"data_0"}


def test_one_is_made_ahead_and_no_more(data: Data) -> None:
    made, task = loader(data, True)
    micro_batches = made.micro_batches(plan_of(data).step(1))
    for asked in range(1, 5):  # the fourth is the step's last: the next step's first is made
        next(micro_batches)
        made._ahead._thread.submit(int).result()  # type: ignore[union-attr]  # behind what is under way
        assert len(task.threads) == asked + 1


def test_a_plan_that_changed_is_what_counts(data: Data) -> None:
    made, _ = loader(data, True)
    read(made, plan_of(data), [1])
    other = BatchPlan(data.train.num_items, seed=4, global_batch_size=8, micro_batch_size=2, max_steps=9)
    assert read(made, other, [2]) == read(loader(data, False)[0], other, [2])


def test_an_error_made_ahead_is_raised_in_the_loop_in_its_turn(data: Data) -> None:
    made, task = loader(data, True)
    micro_batches = made.micro_batches(plan_of(data).step(1))
    assert next(micro_batches).position == 0
    made._ahead._thread.submit(int).result()  # type: ignore[union-attr]
    task.fails = True
    assert next(micro_batches).position == 1  # it was made before
    with pytest.raises(ValueError, match="a bug in collate"):
        next(micro_batches)


def test_who_waits_for_data_says_so(data: Data) -> None:
    made, task = loader(data, True)
    beat("update", 7)
    task.go.clear()
    waiting = threading.Thread(target=lambda: next(made.micro_batches(plan_of(data).step(1))))
    waiting.start()
    while not task.threads:
        waiting.join(0.01)
    assert last_beat().phase == "data"
    task.go.set()
    waiting.join()


def test_no_random_stream_is_touched(data: Data) -> None:
    made, _ = loader(data, True)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    read(made, plan_of(data), [1, 2])
    assert torch.equal(torch.rand(3), expected)


@pytest.fixture
def single_gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What `start` returns where one process has a GPU; the third of three is the current one."""

    class OnGpu(accelerate.Accelerator):
        """Accelerate's own, which here finds a CPU, with the device that it finds there: one without an index."""

        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            accelerate.PartialState().device = self.state.device = torch.device("cuda")

    ones = torch.ones
    monkeypatch.setattr(accelerate, "Accelerator", OnGpu)
    monkeypatch.setattr(torch, "ones", lambda *shape, device: ones(*shape))  # what ranks are counted with
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 2)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield start([], "unused")
    AcceleratorState._reset_state(reset_partial_state=True)


def test_the_thread_begins_on_the_device_of_a_single_process(
    data: Data, single_gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[int, str]] = []
    monkeypatch.setattr(
        torch.accelerator,
        "set_device_index",
        lambda device: begun.append((device.index, threading.current_thread().name)),
    )
    monkeypatch.setattr(accelerator, "_known", {})
    made = Loader(data.train, Watched(), 0, single_gpu)
    assert made._ahead
    made._ahead._make = lambda name: {"input_ids": torch.tensor([len(name)])}  # without copying to a GPU
    assert made._ahead.get(b"three", None)["input_ids"] == 5
    assert begun == [(2, "data_0")]
    assert single_gpu.device == accelerate.PartialState().device == torch.device("cuda", 2)


def test_beside_a_device_batches_arrive_whole_in_a_thread_that_works_on_it(data: Data, late_device: Any) -> None:
    numbers = [1, 2, 3, 2, 9]
    task = Watched()
    rank: Any = SimpleNamespace(process_index=0, num_processes=1, device=torch.device("cpu"))
    made = Loader(data.train, task, padding(0), rank)
    assert made._ahead is not None
    found = read(made, plan_of(data), numbers)
    late_device.synchronize()  # tells whether page-locked memory was changed before its copy
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(accelerator._known, torch.device("cpu"))
        assert found == read(loader(data, False)[0], plan_of(data), numbers)
    assert late_device.most > 0 and set(task.threads) == {"data_0"}


def test_memory_that_runs_out_for_a_batch_made_ahead_is_told_by_the_loop(data: Data, late_device: Any) -> None:
    late_device.capacity = 100
    rank: Any = SimpleNamespace(process_index=0, num_processes=1, device=torch.device("cpu"))
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        read(Loader(data.train, Watched(), padding(0), rank), plan_of(data), [1])


def test_what_a_batch_was_on_the_host_is_known_without_waiting(data: Data, late_device: Any) -> None:
    rank: Any = SimpleNamespace(process_index=0, num_processes=1, device=torch.device("cpu"))
    micro_batch = next(Loader(data.train, Watched(), padding(0), rank).micro_batches(plan_of(data).step(1)))
    for tensor in micro_batch.batch.values():
        assert accelerator.on_host(tensor) is not tensor
        assert torch.equal(accelerator.on_host(tensor), tensor)
    assert late_device.waits == 0
