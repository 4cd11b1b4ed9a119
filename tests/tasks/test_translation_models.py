"""Models that translate, as they ship: examples, loss and texts are those of plain transformers."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from onecurve.config import TaskSection
from onecurve.errors import ConfigError
from onecurve.model.generation import settle_generation
from onecurve.tasks import load_task
from onecurve.tasks.base import Survey
from tests.multilingual_models import CORPUS, FAMILIES, build
from tests.readings import ReadingOf

pytest.importorskip("sentencepiece")
SOURCES = ["the dog sleeps", "the fox jumps over the sun", "the sun"]
TARGETS = ["der Hund schläft", "der Fuchs springt über die Sonne", "die Sonne"]
GENERATE = {"max_new_tokens": 9, "num_beams": 2}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, build(request.param, tmp_path_factory.mktemp("models") / request.param)


def prepare(name: str, folder: Path, **settings: Any) -> tuple[Any, ReadingOf, Any]:
    from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer

    task = load_task(TaskSection(name="seq2seq_lm", generate=GENERATE, **{**FAMILIES[name][1], **settings}))
    reading = ReadingOf(lambda: AutoTokenizer.from_pretrained(folder), 60, AutoConfig.from_pretrained(folder))
    return task, reading, AutoModelForSeq2SeqLM.from_pretrained(folder)


def plain(name: str, folder: Path) -> Any:
    """What the documentation of transformers has a translator load."""
    from transformers import AutoTokenizer

    languages = FAMILIES[name][1]
    told = {"src_lang": languages["source_lang"], "tgt_lang": languages["target_lang"]} if languages else {}
    return AutoTokenizer.from_pretrained(folder, **told)


def test_examples_and_loss_are_those_of_plain_transformers(family: tuple[str, Path]) -> None:
    name, folder = family
    task, reading, model = prepare(name, folder)
    rows = [{"source": s, "target": t} for s, t in zip(SOURCES, TARGETS, strict=True)]
    examples = [example for row in rows for example in task.encode(row, Survey(), reading, truncate=False)]
    theirs = plain(name, folder)(SOURCES, text_target=TARGETS)
    assert [example["input_ids"] for example in examples] == theirs["input_ids"]
    assert [example["labels"] for example in examples] == theirs["labels"]
    assert task.prompt(rows[1], reading)["input_ids"] == theirs["input_ids"][1]

    batch = task.collate(examples, reading)
    read: list[torch.Tensor] = []
    model.get_decoder().register_forward_pre_hook(lambda _, __, kw: read.append(kw["input_ids"]), with_kwargs=True)
    with torch.no_grad():
        loss = task.loss_sum(task.forward(model, batch), batch)
        mean = model(**batch).loss
    assert torch.equal(read[0], read[1]), "the decoder reads what it reads in plain transformers"
    assert math.isclose(float(loss), float(mean) * task.num_items(batch), rel_tol=1e-5)


def test_the_saved_model_writes_the_same_in_plain_transformers(family: tuple[str, Path], tmp_path: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    name, folder = family
    task, reading, model = prepare(name, folder)
    examples = [task.prompt({"source": source}, reading) for source in SOURCES]
    settle_generation(model, task, reading.tokenizer)
    ours = task.generate(model, examples, reading, **task.generation)
    model.save_pretrained(tmp_path)
    reading.tokenizer.save_pretrained(tmp_path)

    saved, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    inputs = tokenizer(SOURCES, padding=True, return_tensors="pt", return_token_type_ids=False)
    written = saved.generate(**inputs)
    assert tokenizer.batch_decode(written, skip_special_tokens=True) == ours
    assert len(set(ours)) > 1, "texts that are all alike compare nothing"
    if language := FAMILIES[name][1].get("target_lang"):
        marks = tokenizer.convert_ids_to_tokens(written[0, :2].tolist())
        assert language.replace("_", "") in "".join(marks).replace("_", ""), marks
        assert plain(name, tmp_path).tgt_lang == tokenizer.tgt_lang == language


@pytest.mark.parametrize("family", ["mbart", "m2m100", "nllb"], indirect=True)
def test_languages_that_it_does_not_know_are_refused(family: tuple[str, Path]) -> None:
    name, folder = family
    row = {"source": CORPUS[0], "target": CORPUS[1]}
    for wrong, said in (("xx", "task.target_lang: this model's tokenizer has no language 'xx'"), (None, "must be set")):
        task, reading, _ = prepare(name, folder, target_lang=wrong)
        with pytest.raises(ConfigError, match=said):
            task.encode(row, Survey(), reading, truncate=False)


@pytest.mark.parametrize("family", ["marian"], indirect=True)
def test_a_tokenizer_without_languages_takes_none(family: tuple[str, Path]) -> None:
    task, reading, _ = prepare(*family, source_lang="en")
    with pytest.raises(
        ConfigError, match=r"task.source_lang: this model's tokenizer \(MarianTokenizer\) marks no lang"
    ):
        task.encode({"source": "a", "target": "b"}, Survey(), reading, truncate=False)
