"""What every test gets: one thread, no network, and tiny models on disk."""

import os

# Before anything heavy is imported, and for the processes that tests start
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.resume.forking import Forks
from tests.tiny_models import build_tiny_bert, build_tiny_llama, build_tiny_t5


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a seeded Llama with a ChatML template."""
    return build_tiny_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a seeded BERT."""
    return build_tiny_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a seeded T5."""
    return build_tiny_t5(tmp_path_factory.mktemp("models") / "t5")


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """What starts real runs without a launch's imports."""
    with Forks() as warm:
        yield warm
