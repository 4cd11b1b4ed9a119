from pathlib import Path
from typing import Any, ClassVar

import pytest

from onecurve.tasks import base, task_names
from onecurve.tasks.base import Settings
from tests.tasks.table import ROOT, _of_task, tables

pytest.importorskip("tomllib", reason="Python 3.11")


def test_the_page_of_tasks_is_what_the_tasks_say() -> None:
    page = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    assert page == tables(), "run: python -m tests.tasks docs/tasks.md"
    assert [line[3:] for line in page.splitlines() if line.startswith("## ")] == task_names()


class _Heard(base.Task):
    """Hear a sound.

    Twice.
    """

    class Settings(Settings):
        pitch: str | None = None
        """Of the sound, high | low."""

    columns: ClassVar[dict[str, str]] = {"sound": "what is heard", "label?": "its name"}
    media: ClassVar[dict[str, str]] = {"sound": "audio"}
    packages: ClassVar[frozenset[str]] = frozenset({"soundfile"})
    encode = collate = num_items = describe = loss_sum = None  # type: ignore[assignment]

    def auto_model(self) -> Any:
        return Path


def test_a_task_s_media_settings_and_extra_are_told(monkeypatch: Any) -> None:
    monkeypatch.setattr("tests.tasks.table._models", lambda name: "a tiny ear")
    assert list(_of_task("heard", _Heard)) == [
        *["## heard", "", "Hear a sound.", "", "Twice.", ""],
        *["| column | what it holds |", "| --- | --- |"],
        *["| `sound` | what is heard (audio file) |", "| `label?` | its name |", ""],
        *["| setting | default | meaning |", "| --- | --- | --- |"],
        *["| `task.pitch` | `null` | Of the sound, high \\| low. |", ""],
        "- metrics: `loss`",
        "- read by: `AutoTokenizer`",
        "- model: `Path`",
        "- PEFT task type: none: no prompt learning",
        "- needs: `soundfile`: extra `audio`",
        "- models tried: a tiny ear",
    ]
