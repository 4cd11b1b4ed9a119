"""What rank 0 does alone ends every rank alike where it fails."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from onecurve.content.completions import Completion
from onecurve.errors import BetweenUpdates, ConfigError, TrainingError
from onecurve.rollouts import first_rank
from onecurve.rollouts.first_rank import of_first
from onecurve.rollouts.records import Records


def on_two_ranks(work: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return what each of two ranks got, or what it raised; rank 1 is handed what rank 0 broadcast."""
    sent: list[Any] = []

    def broadcast(values: list[Any]) -> list[Any]:
        if not sent:
            sent.append(list(values))
        values[:] = sent[0]
        return values

    monkeypatch.setattr(first_rank, "broadcast_object_list", broadcast)
    found = []
    for rank in range(2):
        accelerator: Any = SimpleNamespace(is_main_process=rank == 0, num_processes=2)
        try:
            found.append(of_first(accelerator, work))
        except (ConfigError, TrainingError) as error:
            found.append((type(error), str(error)))
    return found


def test_both_get_what_came_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert on_two_ranks(lambda: {"a": 1}, monkeypatch) == [{"a": 1}, {"a": 1}]


def test_a_mistake_is_met_by_both_between_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> None:
        raise ConfigError("is wrong", where="task.rewards", fix="Mend it.")

    one, other = on_two_ranks(work, monkeypatch)
    assert one == other == (BetweenUpdates, str(BetweenUpdates("is wrong", where="task.rewards", fix="Mend it.")))


def test_completions_that_cannot_be_written_end_both(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rollouts").write_text("in its way")
    step: Any = SimpleNamespace(number=3, sample_ids=np.array([0]))
    answer = Completion([1], [-1.0], 1.0, True, "a", {}, None)

    def work() -> None:
        Records(tmp_path).write(step, [{"input_ids": [1]}], [answer])

    one, other = on_two_ranks(work, monkeypatch)
    assert one == other and one[0] is TrainingError and "cannot be written: File exists" in one[1]


def test_completions_that_cannot_be_removed_end_both(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / "rollouts" / "step-00000007.jsonl"
    left.parent.mkdir()
    left.write_text("")

    def refuse(path: Any, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    one, other = on_two_ranks(lambda: Records(tmp_path).remove_after(3), monkeypatch)
    assert one == other and one[0] is TrainingError and f"'{left}' cannot be removed: Permission denied" in one[1]
