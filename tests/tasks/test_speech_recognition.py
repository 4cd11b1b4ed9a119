import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoProcessor, Wav2Vec2ForCTC

from onecurve.config import TaskSection
from onecurve.content.survey import Survey
from onecurve.errors import BadRow, ConfigError
from onecurve.tasks import load_task
from onecurve.tasks.speech_recognition import Task
from tests.readings import ReadingOf
from tests.tasks.contract import Case
from tests.tiny_sounds import build_tiny_wav2vec2, clip, encoded, tone

TEXTS = ["ab", "abc cab", "aabb", "cc c"]


def _oracle(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    inputs = {name: batch[name] for name in ("input_values", "attention_mask", "labels")}
    return model(**inputs).loss / (batch["labels"] >= 0).sum()  # ctc_loss_reduction: sum


def _rows(folder: Path) -> list[dict[str, Any]]:
    for number in range(len(TEXTS)):
        (folder / f"{number}.flac").write_bytes(encoded(tone(300 * (1 + number), 0.3 + 0.1 * number), kind="FLAC"))
    return [{"audio": f"{number}.flac", "text": text} for number, text in enumerate(TEXTS)]


CASES = {"speech": Case(_rows, model="tiny_ctc", nats_per_item=math.nan, oracle=_oracle)}


def prepared(folder: Path, **settings: Any) -> tuple[Task, ReadingOf]:
    task = load_task(TaskSection(name="speech_recognition", **settings))
    reading = ReadingOf(lambda: task.auto_processor().from_pretrained(str(folder)), 10**9, None)
    assert reading.processor is not None
    return task, ReadingOf(lambda: reading.processor, 10**9, AutoConfig.from_pretrained(folder))


@pytest.fixture
def folder(tiny_ctc: Path) -> Path:
    return tiny_ctc


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    sounds = tmp_path_factory.mktemp("sounds")
    return [
        {"audio": clip(sounds / f"{number}.flac", tone(300, 0.3 + 0.1 * number)), "text": text}
        for number, text in enumerate(TEXTS)
    ]


def encode(task: Task, reading: Any, rows: list[Any], truncate: bool = False) -> list[dict[str, Any]]:
    return [example for row in rows for example in task.encode(row, Survey(), reading, truncate)]


def batch_of(task: Task, reading: Any, examples: list[Any]) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    return task.collate([task.transform(example, rng, False, reading) for example in examples], reading)


def test_the_loss_is_that_of_transformers_and_an_item_is_a_token(folder: Path, rows: list[Any]) -> None:
    task, reading = prepared(folder)
    batch = batch_of(task, reading, encode(task, reading, rows))
    model = Wav2Vec2ForCTC.from_pretrained(folder).eval()
    inputs = {name: batch[name] for name in ("input_values", "attention_mask", "labels")}
    theirs = model(**inputs).loss  # ctc_loss_reduction: sum
    assert task.loss_sum(task.forward(model, batch), batch).item() == pytest.approx(theirs.item(), rel=1e-5)
    assert task.num_items(batch) == sum(map(len, TEXTS))


def test_a_text_that_fits_no_alignment_is_told(folder: Path, tmp_path: Path) -> None:
    task, reading = prepared(folder)
    audio = clip(tmp_path / "short.wav", tone(300, 0.1))  # 5 frames
    (example,) = encode(task, reading, [{"audio": audio, "text": "aba"}])
    frames = example["frames"]
    fits, too_long = "ab" * frames, "aa" + "ba" * frames
    assert encode(task, reading, [{"audio": audio, "text": fits[:frames]}])
    with pytest.raises(BadRow, match=f"need at least {frames + 1} frames .* and the clip has {frames}"):
        encode(task, reading, [{"audio": audio, "text": too_long[:frames]}])
    model = Wav2Vec2ForCTC.from_pretrained(folder).eval()
    ids = reading.processor.tokenizer(too_long[:frames])["input_ids"]
    batch = batch_of(task, reading, [{**example, "labels": ids}])
    assert torch.isinf(task.loss_sum(task.forward(model, batch), batch)), "refused for nothing"


def test_unknown_characters_are_told_with_what_to_do(folder: Path, rows: list[Any]) -> None:
    task, reading = prepared(folder)
    with pytest.raises(BadRow, match=r"text has 'A', '\?' that the tokenizer does not know\. .* are lower case"):
        encode(task, reading, [{**rows[0], "text": "Ab?"}])
    with pytest.raises(BadRow, match="'<pad>', the name of the blank token"):
        encode(task, reading, [{**rows[3], "text": "a<pad>b"}])
    task, reading = prepared(folder, case="lower", remove="?!")
    (example,) = encode(task, reading, [{**rows[1], "text": " Ab? \n C!"}])
    assert task.reference(example, Survey()) == {"reference": "ab c"}
    assert encode(task, reading, [{**rows[1], "text": "?!"}]) == []


def test_a_new_vocabulary_is_the_recipes_and_none_is_guessed(tmp_path: Path, folder: Path, rows: list[Any]) -> None:
    bare = build_tiny_wav2vec2(tmp_path / "bare")
    with pytest.raises(ConfigError, match=r"task.vocabulary: must be set: .* has no tokenizer"):
        prepared(bare)
    task, reading = prepared(bare, vocabulary="cbaé")
    tokenizer = reading.processor.tokenizer
    assert tokenizer("é ca")["input_ids"] == [8, 4, 5, 7]
    assert task.model_config(Survey())["vocab_size"] == 9 and task.model_config(Survey())["pad_token_id"] == 0
    reading.processor.save_pretrained(tmp_path / "saved")
    assert AutoProcessor.from_pretrained(tmp_path / "saved").tokenizer.get_vocab() == tokenizer.get_vocab()
    assert prepared(folder, vocabulary="abc")  # the one that it has
    with pytest.raises(ConfigError, match=r"task.vocabulary: .* has a tokenizer with other characters"):
        prepared(folder, vocabulary="abd")
    for wrong, message in (("aba", "'a' more than once"), ("a b", "must not have ' '"), ("a|", "must not have '|'")):
        with pytest.raises(ConfigError, match=re.escape(message)):
            load_task(TaskSection(name="speech_recognition", vocabulary=wrong))


def test_a_clip_is_cut_only_where_it_has_no_text(folder: Path, rows: list[Any]) -> None:
    task, reading = prepared(folder, max_seconds=0.35)
    with pytest.raises(BadRow, match=r"cannot be cut, because .* set data.on_long to drop"):
        encode(task, reading, rows, truncate=True)
    silent = [{"audio": row["audio"]} for row in rows]
    cut = encode(task, reading, silent, truncate=True)
    assert max(example["num_samples"] for example in cut) <= 0.35 * 16000


def test_texts_are_decoded_greedily_without_blanks_and_padding(folder: Path, rows: list[Any]) -> None:
    task, reading = prepared(folder)
    examples = encode(task, reading, rows)
    batch = batch_of(task, reading, examples)
    frames = batch["num_frames"].tolist()
    said = torch.full((4, max(frames)), 7)  # c: what padding says
    for row, (example, count) in zip(said, zip(examples, frames, strict=True), strict=True):
        row[:count] = 0
        places = [token for label in example["labels"] for token in (label, 0)][:count]
        row[: len(places)] = torch.tensor(places)
    logits = torch.nn.functional.one_hot(said, 8).float()
    assert [count >= 2 * len(text) for count, text in zip(frames, TEXTS, strict=True)] == [True] * 4
    pairs = task.predict(logits, batch)
    assert pairs == [(text, text) for text in TEXTS]
    assert task.answers(logits, batch, examples, Survey()) == [{"text": text} for text in TEXTS]
    scores = task.metrics([("ab", "ab"), ("cab", "abc cab"), *pairs[2:]], 1.5, Survey())
    assert scores["wer"] == pytest.approx(1 / 6) and scores["loss"] == 1.5
