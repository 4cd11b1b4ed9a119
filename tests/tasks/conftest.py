"""Models that read sounds, for the tasks that do."""

from pathlib import Path

import pytest

from tests.tiny_sounds import build_tiny_ast, build_tiny_wav2vec2


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
