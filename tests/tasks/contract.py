"""What the loop relies on in every task, as checks that raise; each task's own test file gives the cases."""

import copy
import math
import tempfile
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from onecurve.config import TaskSection
from onecurve.content.completions import Completion
from onecurve.data.collation import transformed
from onecurve.data.loader import Loader
from onecurve.data.media import MediaColumns
from onecurve.data.plan import BatchPlan
from onecurve.data.pool import Pool
from onecurve.data.rows import Located
from onecurve.model.batch_norm import settle_batch_norm
from onecurve.seeds import stream_key
from onecurve.step import accumulate
from onecurve.tasks import load_task, task_names
from onecurve.tasks.base import Annotates, Mismatches, Pools, RollsOut, Survey
from tests.readings import ReadingOf

SEED = 5
ALONE: Any = SimpleNamespace(process_index=0, num_processes=1, gather=lambda tensor: tensor)
"""An accelerator of one rank."""


def models_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """What a model of transformers returns as its loss, given all of a batch."""
    loss: Tensor = model(**batch).loss
    return loss


@dataclass(frozen=True)
class Case:
    """A task with rows of different lengths, enough for one padded batch."""

    rows: list[dict[str, Any]] | Callable[[Path], list[dict[str, Any]]]
    """Or what writes the files that they refer to into a folder, and returns them."""
    settings: dict[str, Any] = field(default_factory=dict)
    model: str = "tiny_llama"
    """The fixture with the model's folder."""
    nats_per_item: float | None = None
    """What one term of the loss is when every logit is zero; log(vocabulary) when absent; nan where nobody can say."""
    oracle: Callable[[Any, dict[str, Tensor]], Tensor] = models_loss
    """The mean loss of a batch as somebody else computes it."""
    task: str = ""
    """Filled in with the name of the task whose test file this is in."""


@cache
def all_cases() -> dict[str, Case]:
    """Every case of every task of the folder: what `CASES` of tests/tasks/test_TASK.py holds."""
    found = {}
    for name in task_names():
        for label, case in import_module(f"tests.tasks.test_{name}").CASES.items():
            found[label] = Case(**{**vars(case), "task": name})
    return found


def run_settings(case: Case, model: Any) -> dict[str, Any]:
    """The settings for a real run of a case; where they name a teacher, the model is its own."""
    return case.settings | ({"teacher": str(model)} if "teacher" in case.settings else {})


@dataclass
class Prepared:
    """A case with everything loaded."""

    task: Any
    survey: Survey
    reading: Any
    model: Any
    rows: list[dict[str, Any]]
    examples: list[dict[str, Any]]
    case: Case
    encoded: list[dict[str, Any]]
    """The examples before anything was added to them."""

    @property
    def nats_per_item(self) -> float:
        return self.case.nats_per_item or math.log(len(self.reading.tokenizer))

    def batch(self, examples: list[dict[str, Any]] | None = None) -> dict[str, Tensor]:
        """What scoring would read: each example's draws are its own, whichever others there are."""
        chosen = examples or self.examples
        places = [*map(self.examples.index, chosen)]
        if isinstance(self.task, Mismatches):
            chosen = [self.task.mismatch(self.examples[place], self.examples[place - 1]) for place in places]
        keys = (stream_key(SEED, "example", place) for place in places)
        return self.task.collate(transformed(self.task, chosen, keys, False, self.reading), self.reading)

    def loss_sums(self, batch: dict[str, Tensor]) -> np.ndarray:
        """Of each term."""
        with torch.no_grad():
            return self.task.loss_sum(self.task.forward(self.model, batch), batch).view(-1).double().numpy()

    def loss_of_pool(self, batches: list[dict[str, Tensor]]) -> np.ndarray:
        """Of the outputs of several batches together."""
        pool = Pool(BatchPlan(np.ones(len(batches)), SEED, len(batches), 1, shuffle=False).step(1), ALONE)
        with torch.no_grad():
            outputs = pool.joined([self.task.forward(self.model, batch) for batch in batches])
            told = {name: pool.joined([batch[name] for batch in batches]) for name in self.task.pooled}
            return self.task.loss_sum(outputs, told).view(-1).double().numpy()

    def gradient(self, micro_batch_size: int, world_size: int = 1) -> Tensor:
        """The whole model's gradient of one step, its ranks one after another in this process."""
        items = torch.tensor([e["num_items"] for e in self.examples]).numpy()
        step = BatchPlan(items, SEED, len(self.examples), micro_batch_size, max_steps=1).step(1)
        split: Any = SimpleNamespace(
            name="train",
            workers=None,
            take=lambda ids: [self.examples[number] for number in ids],
            others=np.arange(len(items)) - 1,
        )
        strategy: Any = OneProcess(self.model, world_size)
        self.model.zero_grad(set_to_none=True)
        turns = Turns(world_size)

        def run(rank: int) -> None:
            accelerator: Any = SimpleNamespace(
                process_index=rank,
                num_processes=world_size,
                device=torch.device("cpu"),
                gather=lambda tensor: turns.gather(rank, tensor),
            )
            accumulate(strategy, Loader(split, self.task, self.reading, accelerator), step, SEED)

        turns.take(run)
        self.model.eval()
        return torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None])


class Turns:
    """Ranks as threads of one process, which take turns: one runs until it gathers, and then waits for the others."""

    def __init__(self, world_size: int) -> None:
        self.world_size, self.whose = world_size, 0
        self.given: list[list[Tensor]] = [[] for _ in range(world_size)]
        self.ended: set[int] = set()
        self.changed = threading.Condition()
        self.error: BaseException | None = None

    def take(self, run: Callable[[int], None]) -> None:
        """Run every rank to its end; raise what any of them raised."""
        threads = [threading.Thread(target=self._one, args=(rank, run)) for rank in range(self.world_size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.error:
            raise self.error

    def gather(self, rank: int, tensor: Tensor) -> Tensor:
        """Return what all ranks hand over in their like calls, rank by rank."""
        self.given[rank].append(tensor)
        call = len(self.given[rank]) - 1
        self._pass_on(rank)
        self._wait(rank)
        assert all(len(of_rank) > call for of_rank in self.given), "ranks gather unequally often"
        return torch.cat([of_rank[call] for of_rank in self.given])

    def _one(self, rank: int, run: Callable[[int], None]) -> None:
        self._wait(rank)
        try:
            run(rank)
        except BaseException as error:  # noqa: BLE001  raised where the ranks were started
            self.error = self.error or error
        self.ended.add(rank)
        self._pass_on(rank)

    def _wait(self, rank: int) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.whose == rank)

    def _pass_on(self, rank: int) -> None:
        others = [(rank + more) % self.world_size for more in range(1, self.world_size + 1)]
        with self.changed:
            self.whose = next((other for other in others if other not in self.ended), -1)
            self.changed.notify_all()


@dataclass
class OneProcess:
    """A strategy whose ranks take turns; gradients are averaged as engines do."""

    model: Any
    world_size: int

    def unwrapped(self) -> Any:
        return self.model

    def begin_pass(self, last: bool) -> None:
        pass

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        (loss / self.world_size).backward()


def prepare(case: Case, folder: Any) -> Prepared:
    from transformers import AutoConfig

    task = load_task(TaskSection(name=case.task, **case.settings))
    rows = rows_of(case, task)
    for row in rows:
        task.check(row)
    survey = task.survey(rows)
    config = AutoConfig.from_pretrained(folder)
    read = ReadingOf(lambda: task.auto_processor().from_pretrained(folder), 128, config)
    torch.manual_seed(0)
    model = task.auto_model().from_pretrained(folder, **task.model_config(survey)).eval()
    with torch.no_grad():
        for weight in model.parameters():  # upstream starts at 0.02, where all logits look alike
            weight.mul_(4)
    settle_batch_norm(model, "frozen")
    examples = [example for row in rows for example in task.encode(row, survey, read, truncate=True)]
    prepared = Prepared(task, survey, read, model, rows, examples, case, examples)
    if isinstance(task, RollsOut):
        return replace(prepared, examples=answered(prepared))
    needs = isinstance(task, Annotates) and task.annotations
    return replace(prepared, examples=annotated(prepared)) if needs else prepared


def annotated(case: Prepared) -> list[dict[str, Any]]:
    """Return the examples with what a reference says of each: the same model with other weights."""
    reference = copy.deepcopy(case.model)
    with torch.no_grad():
        for weight in reference.parameters():
            weight.mul_(0.9)
        batch = case.batch()
        said = case.task.annotate(case.task.forward(reference, batch), batch)
    return [{**example, **{name: said[name][place] for name in said}} for place, example in enumerate(case.examples)]


def answered(case: Prepared) -> list[dict[str, Any]]:
    """Return an example of each of some completions, with advantages as if there were rewards."""
    rng = np.random.default_rng(0)
    prompts = [example for example in case.examples for _ in range(case.task.completions)]
    completions = []
    for size in rng.integers(1, 6, len(prompts)).tolist():
        ids = rng.integers(5, len(case.reading.tokenizer), size).tolist()
        logps, reference = (-rng.uniform(3, 8, size)).tolist(), (-rng.uniform(3, 8, size)).tolist()
        completions.append(Completion(ids, logps, 1.0, size % 2 == 0, "", {}, reference))
    examples = case.task.answered(prompts, completions, training=True)
    return [{**example, "advantage": float(rng.normal())} for example in examples]


def rows_of(case: Case, task: Any) -> list[dict[str, Any]]:
    """The case's rows as a run reads them: files found and hashed."""
    if isinstance(case.rows, list):
        return [*case.rows]  # whoever asks may keep only some
    folder, columns = Path(tempfile.mkdtemp()), MediaColumns(task.media)
    found = [columns.read(Located("", columns.placed(row, folder))) for row in case.rows(folder)]
    return [one.row for one in found if isinstance(one, Located)]


def check_batch_is_the_sum_of_its_examples(case: Prepared) -> None:
    """Or, of a task that compares examples, what its pool makes of each example's own outputs."""
    if isinstance(case.task, Pools):
        alone = case.loss_of_pool(list(map(case.batch, ([example] for example in case.examples))))
    else:
        alone = sum(case.loss_sums(case.batch([example])) for example in case.examples)
    assert np.allclose(case.loss_sums(case.batch()), alone, rtol=1e-5)


def check_num_items_counts_the_terms(case: Prepared) -> None:
    batch = case.batch()
    if not math.isnan(case.nats_per_item):
        with torch.no_grad():
            logits = tree_map(torch.zeros_like, case.task.forward(case.model, batch))
        terms = float(case.task.loss_sum(logits, batch)) / case.nats_per_item
        assert math.isclose(case.task.num_items(batch), terms, rel_tol=1e-5)
    counts = np.array([example["num_items"] for example in case.examples]).sum(0)
    assert np.array_equal(case.task.num_items(batch), counts)


def check_the_oracle_computes_the_same(case: Prepared) -> None:
    batch = case.batch()
    with torch.no_grad():
        loss = float(case.case.oracle(case.model, batch))
    means = case.loss_sums(batch) / case.task.num_items(batch)
    assert math.isclose(means @ [*case.task.terms.values()], loss, rel_tol=1e-5)


def check_the_metrics_told_are_those_scored(case: Prepared) -> None:
    batch = case.batch()
    with torch.no_grad():
        pairs = case.task.predict(case.task.forward(case.model, batch), batch)
    scores = case.task.metrics(pairs, 1.5, case.survey)
    numbers = [name for name, value in scores.items() if not isinstance(value, (dict, list))]  # None: undefined here
    of_terms = {case.task.metric_of_term(name) for name in case.task.terms}
    assert sorted(set(case.task.metric_names) - of_terms) == sorted(numbers)


def check_another_cut_has_the_same_gradient(case: Prepared) -> None:
    """Other micro-batch sizes without dropout; other numbers of ranks with it, whose masks are keyed by position."""
    case, whole = copy.copy(case), copy.copy(case)
    case.model = in_double(copy.deepcopy(case.model))  # so that what is left is no float noise
    whole.model = without_dropout(copy.deepcopy(case.model))
    gradients = [whole.gradient(size) for size in (len(case.examples), 2, 1)]
    gradients += [whole.gradient(1, world_size) for world_size in (2, 3)]
    assert bool(gradients[0].any()), "no gradient"
    for other in gradients[1:]:
        assert distance(gradients[0], other) < 1e-5
    one, two = case.gradient(1), case.gradient(1, 2)
    assert distance(one, gradients[0]) > 1e-3, "there is no dropout to be keyed"
    assert distance(one, two) < 1e-5


def in_double(model: Any) -> Any:
    """Return a model that computes in double precision, whatever it is given."""

    def widen(module: Any, args: Any, kwargs: Any) -> Any:
        return tree_map(lambda leaf: leaf.double() if is_float(leaf) else leaf, (args, kwargs))

    def is_float(leaf: Any) -> bool:
        return isinstance(leaf, Tensor) and leaf.is_floating_point()

    model.double().register_forward_pre_hook(widen, with_kwargs=True)
    return model


def distance(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / ours.norm())


def without_dropout(model: Any) -> Any:
    """Return a model none of whose modules drops anything."""
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


CHECKS = [
    check_batch_is_the_sum_of_its_examples,
    check_num_items_counts_the_terms,
    check_the_metrics_told_are_those_scored,
    check_the_oracle_computes_the_same,
    check_another_cut_has_the_same_gradient,
]
