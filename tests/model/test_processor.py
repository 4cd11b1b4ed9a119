"""Processors that read images: which one a run takes, and from which config."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoImageProcessor, AutoModelForImageClassification

from onecurve.config import ModelSection
from onecurve.errors import ConfigError
from onecurve.model.reading import Reading, load_config
from tests.tiny_vision import build_tiny_vision


def _reading(folder: Path, kind: type = AutoImageProcessor) -> Reading:
    return Reading(ModelSection(path=str(folder)), None, lambda: kind)


def test_images_are_read_by_pillow_whatever_else_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    right = AutoImageProcessor.from_pretrained.__func__

    def from_pretrained(cls: Any, *args: Any, **options: Any) -> Any:
        asked.update(options)
        return right(cls, *args, **options)

    monkeypatch.setattr(AutoImageProcessor, "from_pretrained", classmethod(from_pretrained))
    processor = _reading(build_tiny_vision(tmp_path, weights=False)).processor
    assert asked["backend"] == "pil"  # else torchvision's pixels where it is installed
    assert processor.backend == "pil"


def test_a_folder_without_a_processor_is_refused(tmp_path: Path) -> None:
    build_tiny_vision(tmp_path, weights=False)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError, match=r"holds no preprocessor_config.json or processor_config.json"):
        _ = _reading(tmp_path).processor


def test_a_config_that_names_no_class_builds_the_first_of_its_type(tmp_path: Path) -> None:
    config = load_config(ModelSection(path=str(build_tiny_vision(tmp_path, "deit", weights=False))))
    model = AutoModelForImageClassification.from_config(config)
    assert type(model).__name__ == "DeiTForImageClassification"
