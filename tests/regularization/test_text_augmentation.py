"""Texts changed in training: keyed by example, never in scoring, within planned lengths, and refused where wrong."""

import copy
import json
from types import SimpleNamespace

import pytest
from numpy.random import Generator, Philox

from onecurve.config import RegularizationSection
from onecurve.content.rewording import TEXTS
from onecurve.data import load_data
from onecurve.data.collation import Collation, Wanted
from onecurve.errors import ConfigError, DataError
from onecurve.model.reading import Reading
from onecurve.preflight import read
from onecurve.regularization import text_augmentation
from onecurve.regularization.text_augmentation import TextAugmentation, build_text_augmentation
from onecurve.seeds import stream_key
from onecurve.tasks import find_task
from onecurve.tasks.base import Rewords, Survey
from tests.data.byte_level import byte_tokenizer
from tests.launching import write_recipe
from tests.readings import ReadingOf
from tests.regularization.gradients import gradient, objective_of
from tests.tasks.contract import distance, in_double, prepare, without_dropout
from tests.tasks.test_seq2seq_lm import CASES as SOURCES
from tests.tasks.test_text_classification import CASES as LABELS
from tests.tasks.test_text_embedding import CASES as EMBEDDINGS
from tests.tasks.test_text_ranking import CASES as RANKINGS

SYNONYMS = "# words of the tests\nthe\ta,this\ndog\tfox\nwe\tthey\n\n"
FUNCTION = """def shorter(text, rng):
    words = text.split()
    return " ".join(words[: 1 + rng.integers(len(words))])
"""
WORDS = "the dog jumps over the lazy fox and we were happy with a film".split()
ROWS = [{"text": " ".join(WORDS[i % 4 : i % 4 + 4 + i % 7]), "label": ("up", "down")[i % 2]} for i in range(24)]
CASES = {
    "text_classification": LABELS["text_pairs"],
    "text_embedding": EMBEDDINGS["text_embedding"],
    "text_ranking": next(iter(RANKINGS.values())),
    "seq2seq_lm": next(iter(SOURCES.values())),
}


@pytest.fixture
def words(tmp_path):
    (tmp_path / "words.txt").write_text(SYNONYMS)
    return str(tmp_path / "words.txt")


@pytest.fixture
def keys(words):
    return {"word_swap": 0.3, "word_deletion": 0.2, "synonyms": words, "synonym_share": 0.5}


@pytest.fixture
def loaded(tmp_path, tiny_bert):
    """Load the data of a recipe; return its task, reading and splits."""

    def of(**regularization):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        (tmp_path / "mine.py").write_text(FUNCTION)
        data = {name: str(tmp_path / "rows.jsonl") for name in ("train", "eval")}
        recipe = write_recipe(
            tmp_path / "recipe.yaml",
            output_dir=str(tmp_path / "run"),
            task={"name": "text_classification"},
            model={"path": str(tiny_bert)},
            data={**data, "cache_dir": str(tmp_path / "cache")},
            train={"max_steps": 1},
            **({"regularization": regularization} if regularization else {}),
        )
        checked = read([str(recipe)])
        reading = Reading.of(checked.recipe, checked.task)
        return checked.task, reading, load_data(checked.recipe.data, checked.task, reading, 0)

    return of


def batch(task, reading, split, numbers, of_pass=0, seed=3):
    import numpy as np

    ids, passes = np.array(numbers, np.int64), np.full(len(numbers), of_pass, np.int64)
    return Collation(split, task, reading)(Wanted(seed, passes.tobytes(), ids.tobytes()))


def rows_of(found):
    return [ids[mask.bool()].tolist() for ids, mask in zip(found["input_ids"], found["attention_mask"], strict=True)]


def test_an_example_s_draws_are_its_own_of_its_pass_and_of_training(loaded, keys):
    task, reading, data = loaded(**keys)
    everything = [*range(len(ROWS))]
    first = rows_of(batch(task, reading, data.train, everything))
    alone = [rows_of(batch(task, reading, data.train, [number]))[0] for number in everything]
    assert first == alone, "an example's text depends on the others of its batch"
    assert first != rows_of(batch(task, reading, data.train, everything, of_pass=1))
    assert first != rows_of(batch(task, reading, data.train, everything, seed=4))
    plain = [row.tolist() if hasattr(row, "tolist") else [*row] for row in (one["input_ids"] for one in data.train)]
    assert sum(ours != before for ours, before in zip(first, plain, strict=True)) > 12
    scored = rows_of(batch(task, reading, data.eval, everything))
    assert scored == plain, "a text was changed in scoring"
    assert all(TEXTS not in example for example in data.eval)


def test_examples_have_the_labels_items_and_lengths_that_the_plan_knows(loaded, keys):
    task, reading, data = loaded(**keys, text_function=None)
    plain_task, _, plain = loaded()
    assert data.train.num_items.tolist() == plain.train.num_items.tolist()
    assert data.train.lengths.tolist() == plain.train.lengths.tolist()
    assert data.eval.key == plain.eval.key and data.train.key == plain.train.key
    assert data.train.examples.folder != plain.train.examples.folder and data.fingerprint == plain.fingerprint
    everything = [*range(len(ROWS))]
    for of_pass in range(4):
        found = batch(task, reading, data.train, everything, of_pass)
        assert all(len(row) <= most for row, most in zip(rows_of(found), data.train.lengths, strict=True))
        assert found["labels"].tolist() == batch(plain_task, reading, plain.train, everything)["labels"].tolist()


def test_synonyms_that_make_a_text_longer_are_taken_back(loaded, tmp_path):
    (tmp_path / "long.txt").write_text("the\tabsolutely the most extraordinary\ndog\tfox\n")
    task, reading, data = loaded(synonyms=str(tmp_path / "long.txt"), synonym_share=1.0)
    texts = [reading.tokenizer.decode(row, True) for row in rows_of(batch(task, reading, data.train, [0, 2, 4, 6]))]
    assert not any("extraordinary" in text for text in texts)
    (tmp_path / "room.txt").write_text("dog\tthe\n")
    task, reading, data = loaded(synonyms=str(tmp_path / "room.txt"), synonym_share=1.0)
    texts = [reading.tokenizer.decode(row, True) for row in rows_of(batch(task, reading, data.train, [*range(24)]))]
    assert not any("dog" in text for text in texts) and any("the the jumps" in text for text in texts)


def test_a_source_does_not_grow_into_the_room_of_its_target():
    kind = find_task("seq2seq_lm")
    task = kind(kind.Settings())
    reading = ReadingOf(byte_tokenizer, config=SimpleNamespace(is_encoder_decoder=True, model_type="t5"))
    row = {"source": "the dog", "target": "the lazy fox jumps over the dog and the film"}
    (example,) = task.encode(row, Survey(), reading, False)
    longer = TextAugmentation(RegularizationSection(synonym_share=1.0), {"dog": ["dog and the lazy fox"]})
    example[TEXTS] = json.dumps({"source": row["source"]})
    changed = longer(task, example, Generator(Philox(key=0)), reading)
    assert task.num_tokens(changed) <= task.num_tokens(example)


def test_a_function_of_the_user_s_changes_training_alone(loaded, tmp_path, monkeypatch):
    task, reading, data = loaded(text_function="mine.py:shorter")
    everything = [*range(len(ROWS))]
    found, scored = (rows_of(batch(task, reading, split, everything)) for split in (data.train, data.eval))
    assert all(ours[: len(ours) - 1] == before[: len(ours) - 1] for ours, before in zip(found, scored, strict=True))
    assert sum(map(len, found)) < sum(map(len, scored))
    assert found == rows_of(batch(task, reading, data.train, everything))
    before = task.augmentation.code
    (tmp_path / "mine.py").write_text(FUNCTION.replace("1 +", "2 +"))
    text_augmentation.user_code.source_hash.cache_clear()
    assert build_text_augmentation(task.augmentation.section).code not in ("", before)


def prepared(request, name, keys):
    case = CASES[name]
    found = prepare(type(case)(**{**vars(case), "task": name}), request.getfixturevalue(case.model))
    found.model = without_dropout(in_double(found.model))
    assert isinstance(found.task, Rewords)
    changed = copy.copy(found)
    changed.task = copy.copy(found.task)
    changed.task.augmentation = build_text_augmentation(RegularizationSection(**keys))
    texts = [{c: row[c] for c in found.task.reworded if row.get(c) is not None} for row in found.rows]
    changed.examples = [{**one, TEXTS: json.dumps(row)} for one, row in zip(found.examples, texts, strict=True)]
    return found, changed


@pytest.mark.parametrize(
    "name", [name if name == "text_embedding" else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_another_cut_has_the_same_gradient(request, keys, name):
    plain, changed = prepared(request, name, keys)
    if name != "text_embedding":
        whole = gradient(changed, objective_of(changed), len(changed.examples))
        assert distance(gradient(plain, objective_of(plain), len(plain.examples)), whole) > 1e-3
        others = [gradient(changed, objective_of(changed), size, ranks) for size, ranks in ((2, 1), (1, 2))]
    else:
        whole = changed.gradient(len(changed.examples))
        assert distance(plain.gradient(len(plain.examples)), whole) > 1e-3, "no text was changed"
        others = [changed.gradient(2), changed.gradient(1, 2)]
    assert all(distance(whole, other) < 1e-5 for other in others)


def test_two_changes_of_one_document_are_no_negatives_of_each_other(request, keys):
    plain, changed = prepared(request, "text_embedding", keys)
    rng = (Generator(Philox(key=stream_key(1, "texts", n))) for n in range(len(changed.examples)))
    ready = [changed.task.augmentation(changed.task, one, next(rng), changed.reading) for one in changed.examples]
    assert [one["input_ids"] for one in ready] != [one["input_ids"] for one in plain.examples]
    before = plain.task.collate(plain.examples, plain.reading)["texts"]
    assert changed.task.collate(ready, changed.reading)["texts"].tolist() == before.tolist()


REFUSED = {
    "no file": ({"synonyms": "nowhere.txt"}, "synonyms: 'nowhere.txt' cannot be read: No such file or directory."),
    "no tab": ({"synonyms": "torn.txt"}, "synonyms: torn.txt, line 2: 'dog fox' is not one word, a tab, and"),
    "empty": ({"synonyms": "empty.txt"}, "synonyms: 'empty.txt' has no synonyms."),
    "no function": ({"text_function": "shout"}, "text_function: 'shout' names no function. Write my_file.py:NAME"),
    "no such file": ({"text_function": "no.py:f"}, "text_function: there is no file 'no.py'."),
    "no such name": ({"text_function": "odd.py:g"}, "text_function: there is no 'g' in odd.py."),
    "a number": ({"text_function": "odd.py:number"}, "text_function: odd.py:number is not a function: 3."),
    "one argument": ({"text_function": "odd.py:one"}, "text_function: odd.py:one cannot be called with a text and a"),
    "no text": ({"text_function": "odd.py:none"}, "text_function: odd.py:none must return text; for 'A text to try"),
    "fails": ({"text_function": "odd.py:fails"}, "text_function: odd.py:fails fails for 'A text to try it on.': Key"),
    "rate": ({"word_swap": 1.0}, "word_swap: must be less than 1"),
    "share": ({"synonyms": "good.txt", "synonym_share": 0}, "synonym_share: must be greater than 0"),
    "no list": ({"synonym_share": 0.5}, "synonym_share: has no effect: no words are replaced"),
}
ODD = "number = 3\none = lambda text: text\ndef none(text, rng): pass\ndef fails(text, rng): return {}[text]\n"


@pytest.mark.parametrize("name", REFUSED)
def test_a_mistake_is_said_before_weights_load(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for file, text in {"torn": "a\tb\ndog fox\n", "empty": "# none\n", "good": "a\tb\n"}.items():
        (tmp_path / f"{file}.txt").write_text(text)
    (tmp_path / "odd.py").write_text(ODD)
    keys, said = REFUSED[name]
    with pytest.raises(ConfigError) as refused:
        read([str(recipe(tmp_path, "text_classification", keys))])
    assert str(refused.value).startswith(f"regularization.{said}")


def recipe(folder, task, keys):
    own = {"output_dir": "x", "task": {"name": task}, "model": {"path": "m"}, "data": {"train": "a.jsonl"}}
    return write_recipe(folder / "recipe.yaml", **own, train={"max_steps": 1}, regularization=keys)


@pytest.mark.parametrize("task", ["token_classification", "sft", "image_classification", "masked_lm", "dpo"])
def test_a_task_whose_texts_cannot_change_alone_is_refused(tmp_path, task):
    with pytest.raises(ConfigError, match=rf"regularization.word_swap: changes .* those of {task} cannot change alone"):
        read([str(recipe(tmp_path, task, {"word_swap": 0.1}))])


def test_a_function_that_returns_no_text_ends_the_run_with_what_it_was_given(loaded, tmp_path):
    late = "def blank(text, rng):\n    return text if 'try' in text else ''\n"
    late += "def fails(text, rng):\n    return text if 'try' in text else {}[1]\n"
    (tmp_path / "late.py").write_text(late)
    for name, said in {"blank": "returned '' for 'the dog", "fails": "fails for 'the dog.*KeyError: 1"}.items():
        task, reading, data = loaded(text_function=f"late.py:{name}")
        with pytest.raises(DataError, match=rf"text_function: .*{name} {said}"):
            batch(task, reading, data.train, [0])
