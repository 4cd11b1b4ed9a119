"""What every test gets: one thread, no network, and tiny models on disk."""

import os

# Before anything heavy is imported, and for the processes that tests start
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

from pathlib import Path

import pytest

from tests.tiny_models import build_tiny_bert, build_tiny_llama


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a seeded Llama with a ChatML template."""
    return build_tiny_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a seeded BERT."""
    return build_tiny_bert(tmp_path_factory.mktemp("models") / "bert")
