"""What every test gets: one thread, no network, and tiny models on disk."""

import os

# Before anything heavy is imported, and for the processes that tests start
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

import copy
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest

from tests.resume.forking import Forks
from tests.tiny_models import build_tiny_bert, build_tiny_llama, build_tiny_t5
from tests.tiny_shapes import build_tiny_detr, build_tiny_segformer
from tests.tiny_sounds import build_tiny_ast, build_tiny_wav2vec2
from tests.tiny_vision import build_tiny_vision

if TYPE_CHECKING:
    from tests.machine.late_device import LateDevice


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seconds", type=float, help="begin no further test once so much time has passed")


class Budget:
    """Leaves out the tests that have not begun when the time is up, and says how many."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.ends, self.left_out = seconds, monotonic() + seconds, 0

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """A test of each file in turn, so that no file is left out whole."""
        seen: Counter[Path] = Counter()
        turns = {item: seen.update([item.path]) or seen[item.path] for item in items}
        items.sort(key=turns.__getitem__)

    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        if monotonic() < self.ends:
            return None
        self.left_out += 1
        return True  # nothing of it is run, not even its fixtures

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.write_line(f"{self.left_out} tests left out: {self.seconds:g} s were up (--seconds)")


def pytest_configure(config: pytest.Config) -> None:
    if (seconds := config.getoption("--seconds")) is not None:
        config.pluginmanager.register(Budget(seconds))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a seeded Llama with a ChatML template."""
    return build_tiny_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def tiny_wav2vec2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a seeded wav2vec2 that classifies."""
    from transformers import Wav2Vec2ForSequenceClassification

    return build_tiny_wav2vec2(
        tmp_path_factory.mktemp("models") / "wav2vec2", weights=Wav2Vec2ForSequenceClassification
    )


@pytest.fixture(scope="session")
def tiny_ctc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a seeded wav2vec2 that writes the letters a, b and c."""
    from transformers import Wav2Vec2ForCTC

    return build_tiny_wav2vec2(tmp_path_factory.mktemp("models") / "ctc", letters="abc", weights=Wav2Vec2ForCTC)


@pytest.fixture(scope="session")
def tiny_ast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a seeded AST."""
    from transformers import ASTForAudioClassification

    return build_tiny_ast(tmp_path_factory.mktemp("models") / "ast", weights=ASTForAudioClassification)


@pytest.fixture
def late_device(monkeypatch: pytest.MonkeyPatch) -> "LateDevice":
    """The CPU as an accelerator that does everything as late as it may."""
    from tests.machine.late_device import stand_in

    return stand_in(monkeypatch)


@pytest.fixture(scope="session")
def chatml(tiny_llama: Path) -> Any:
    """Its tokenizer; `tokenizer` is a copy to change."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.fixture
def tokenizer(chatml: Any) -> Any:
    """A tokenizer whose template a test may change."""
    return copy.deepcopy(chatml)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a seeded BERT."""
    return build_tiny_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="session")
def tiny_masked_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a seeded BERT with its masked language model's head."""
    return build_tiny_bert(tmp_path_factory.mktemp("models") / "masked_bert", masked_lm=True)


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a seeded T5."""
    return build_tiny_t5(tmp_path_factory.mktemp("models") / "t5")


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a seeded ViT."""
    return build_tiny_vision(tmp_path_factory.mktemp("models") / "vit")


@pytest.fixture(scope="session")
def tiny_segformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a seeded SegFormer."""
    return build_tiny_segformer(tmp_path_factory.mktemp("models") / "segformer")


@pytest.fixture(scope="session")
def tiny_detr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a seeded DETR."""
    return build_tiny_detr(tmp_path_factory.mktemp("models") / "detr")


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """What starts real runs without a launch's imports."""
    with Forks() as warm:
        yield warm
