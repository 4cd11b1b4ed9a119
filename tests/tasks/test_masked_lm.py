import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerFast

from onecurve.data.collation import as_scored
from onecurve.errors import ConfigError
from onecurve.prediction.answers import plain
from onecurve.tasks.base import IGNORE_INDEX, Asked, BadRow, Survey
from onecurve.tasks.masked_lm import MaskedLmSettings, Task, special_ids
from tests.readings import reading
from tests.tasks.contract import Case, without_dropout
from tests.zoo.building import build
from tests.zoo.families import CLASSIFIERS
from tests.zoo.trial import Trial, attempt, write_trial

TASK = Task(MaskedLmSettings())
TEXTS = ["the quick brown fox jumps over the lazy dog", "the dog", "we were happy with the film, and they were not."]
MODELS = ["BERT", "RoBERTa", "DistilBERT", "ALBERT", "ELECTRA", "DeBERTa v2", "ModernBERT"]
CASES = {
    "masked_lm": Case([{"text": text} for text in TEXTS], model="tiny_masked_bert"),
    "masked_lm_tokens": Case(
        [{"text": text} for text in TEXTS], {"whole_word": False, "mask_probability": 0.4}, model="tiny_masked_bert"
    ),
}


@pytest.fixture(scope="module")
def tokenizer(tiny_bert: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_bert)


@pytest.fixture(scope="module")
def model(tiny_masked_bert: Path) -> Any:
    return AutoModelForMaskedLM.from_pretrained(tiny_masked_bert).eval()


def _encode(text: str, tokenizer: Any, max_length: int = 64, **settings: Any) -> list[dict[str, Any]]:
    task = Task(MaskedLmSettings(**settings))
    return task.encode({"text": text}, Survey(), reading(tokenizer, max_length), truncate=False)


def _hide(example: dict[str, Any], tokenizer: Any, seed: int = 0, task: Task = TASK) -> dict[str, Any]:
    return task.transform(example, np.random.default_rng(seed), True, reading(tokenizer))


def _wordpiece() -> Any:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=60, special_tokens=special, show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{f"{k}_token": v for k, v in names.items()})


# Blocks


@pytest.mark.parametrize("max_length", [3, 5, 16, 64])
def test_each_token_is_in_one_block_between_the_special_tokens(max_length: int, tokenizer: Any) -> None:
    text = " ".join(TEXTS)
    blocks = _encode(text, tokenizer, max_length)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    assert all(block["input_ids"][0] == cls and block["input_ids"][-1] == sep for block in blocks)
    assert [id for block in blocks for id in block["input_ids"][1:-1]] == tokenizer(text)["input_ids"][1:-1]
    assert all(len(block["input_ids"]) == max_length for block in blocks[:-1])
    assert all(block["words"][0] == block["words"][-1] == -1 for block in blocks)
    for block in blocks:
        assert block["num_items"] == max(1, round(0.15 * (len(block["input_ids"]) - 2)))


def test_a_length_without_room_for_text_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=r"data\.max_length: must leave room for text: each block has 2 special"):
        _encode("the dog", tokenizer, 2)


def test_special_tokens_that_a_text_names_stay_and_are_not_hidden(tokenizer: Any) -> None:
    (example,) = _encode("[MASK]the dog[SEP] sleeps[PAD]", tokenizer)
    ids = tokenizer("[MASK]the dog[SEP] sleeps[PAD]")["input_ids"]
    assert example["input_ids"] == ids
    special = [place for place, token in enumerate(ids) if token in special_ids(tokenizer)]
    assert len(special) == 5 and all(example["words"][place] == -1 for place in special)
    assert _encode("[SEP]", tokenizer) == []


def test_a_tokenizer_without_a_mask_token_is_refused(tiny_llama: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.tokenizer: has no mask token"):
        _encode("the dog", AutoTokenizer.from_pretrained(tiny_llama))


@pytest.mark.parametrize(
    ("row", "why"), [({}, "missing"), ({"text": None}, "missing"), ({"text": " \n"}, "empty"), ({"text": 3}, "int")]
)
def test_a_bad_row_says_why(row: dict[str, Any], why: str) -> None:
    with pytest.raises(BadRow, match=why):
        TASK.check(row)


def test_the_shares_are_checked() -> None:
    with pytest.raises(ValueError, match=r"mask_share 0.8 and random_share 0.3 are more than 1"):
        MaskedLmSettings(random_share=0.3)


# Hiding


def test_exactly_the_items_are_learnt_and_the_example_stays(tokenizer: Any) -> None:
    (example,) = _encode(" ".join(TEXTS), tokenizer, 128)
    before = json.dumps(example)
    for seed in range(20):
        hidden = _hide(example, tokenizer, seed)
        learnt = [place for place, label in enumerate(hidden["labels"]) if label != IGNORE_INDEX]
        assert len(learnt) == hidden["num_items"] == example["num_items"]
        assert all(hidden["labels"][place] == example["input_ids"][place] for place in learnt)
        others = set(range(len(example["input_ids"]))) - set(learnt)
        assert all(hidden["input_ids"][place] == example["input_ids"][place] for place in others)
    assert json.dumps(example) == before
    assert _hide(example, tokenizer, 3) == _hide(example, tokenizer, 3) != _hide(example, tokenizer, 4)


def test_words_are_hidden_whole_unless_tokens_are_asked_for() -> None:
    tokenizer = _wordpiece()
    (example,) = _encode(" ".join(TEXTS), tokenizer, 128)
    words = np.array(example["words"])
    split = {}
    for whole_word in (True, False):
        task = Task(MaskedLmSettings(whole_word=whole_word))
        (one,) = task.encode({"text": " ".join(TEXTS)}, Survey(), reading(tokenizer, 128), truncate=False)
        parts = 0
        for seed in range(50):
            labels = np.array(_hide(one, tokenizer, seed, task)["labels"])
            chosen = labels != IGNORE_INDEX
            parts += sum(0 < chosen[words == word].sum() < (words == word).sum() for word in set(words) - {-1})
        split[whole_word] = parts
    assert split[True] <= 50 < split[False]  # of a text at most one word, to make the number exact


def test_eight_in_ten_read_as_masks_one_as_any_ordinary_token_one_as_itself(tokenizer: Any) -> None:
    (example,) = _encode(" ".join(TEXTS), tokenizer, 128)
    fates, drawn = {"mask": 0, "same": 0, "other": 0}, set()
    for seed in range(600):
        hidden = _hide(example, tokenizer, seed)
        for read, label in zip(hidden["input_ids"], hidden["labels"], strict=True):
            if label != IGNORE_INDEX:
                fate = "mask" if read == tokenizer.mask_token_id else "same" if read == label else "other"
                fates[fate] += 1
                drawn |= {read} if fate == "other" else set()
    shares = [fates[fate] / sum(fates.values()) for fate in ("mask", "same", "other")]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.015)
    assert len(drawn) > 200 and not drawn & special_ids(tokenizer)


def test_a_token_added_to_the_vocabulary_is_hidden_and_drawn_like_any(tiny_bert: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    tokenizer.add_tokens(["<drug>"])
    number = tokenizer.convert_tokens_to_ids("<drug>")
    task = Task(MaskedLmSettings(mask_probability=0.9, mask_share=0.0, random_share=1.0))
    (example,) = task.encode({"text": "the <drug> dog " * 8}, Survey(), reading(tokenizer), truncate=False)
    assert number in example["input_ids"] and example["words"][example["input_ids"].index(number)] != -1
    read = {token for seed in range(100) for token in _hide(example, tokenizer, seed, task)["input_ids"]}
    assert number in read


# Loss, scores, answers


def test_the_logits_are_those_of_the_hidden_tokens_alone(model: Any, tokenizer: Any) -> None:
    batch = TASK.collate([_hide(e, tokenizer) for text in TEXTS for e in _encode(text, tokenizer)], reading(tokenizer))
    with torch.no_grad():
        outputs = TASK.forward(model, batch)
        whole = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert len(outputs) == TASK.num_items(batch) < batch["labels"].numel()
    assert torch.allclose(outputs, whole[batch["labels"] != IGNORE_INDEX], atol=1e-6)


def test_accuracy_and_pseudo_perplexity_are_of_the_hidden_tokens(tokenizer: Any) -> None:
    batch = TASK.collate([_hide(e, tokenizer) for text in TEXTS for e in _encode(text, tokenizer)], reading(tokenizer))
    wanted = batch["labels"][batch["labels"] != IGNORE_INDEX]
    logits = torch.nn.functional.one_hot(wanted, len(tokenizer)).float()
    logits[0] = logits[0].roll(1)
    pairs = TASK.predict(logits, batch)
    counts = [1, 1, 2]
    assert [hidden for _, hidden in pairs] == (batch["labels"] != IGNORE_INDEX).sum(1).tolist()
    assert sum(right for right, _ in pairs) == len(wanted) - 1 and len(pairs) == len(counts)
    scores = TASK.metrics(pairs, 2.0, Survey())
    assert scores == {"loss": 2.0, "pseudo_perplexity": math.exp(2), "accuracy": (len(wanted) - 1) / len(wanted)}


def test_an_answer_has_the_candidates_of_the_fill_mask_pipeline(model: Any, tokenizer: Any) -> None:
    from transformers import pipeline

    texts = ["the [MASK] jumps over the [MASK] dog", "[MASK] dog"]
    assert isinstance(TASK, Asked)
    read = reading(tokenizer)
    questions = [TASK.question(TASK.read_text(text), read, truncate=False) for text in texts]
    assert [TASK.transform(q, np.random.default_rng(0), False, read) for q in questions] == questions
    batch = TASK.collate(questions, read)
    with torch.inference_mode():
        replies = TASK.replies(TASK.forward(model, batch), batch, read)
    assert [len(reply["fills"]) for reply in replies] == [2, 1]
    pipe = pipeline("fill-mask", model=model, tokenizer=tokenizer)
    for reply, text in zip(replies, texts, strict=True):
        told = pipe(text)
        told = told if isinstance(told[0], list) else [told]
        for ours, theirs in zip(reply["fills"], told, strict=True):
            assert [one["id"] for one in ours] == [one["token"] for one in theirs]
            assert [one["token"] for one in ours] == [one["token_str"] for one in theirs]
            assert [one["probability"] for one in ours] == pytest.approx([one["score"] for one in theirs], rel=1e-4)
        assert json.loads(json.dumps(reply)) == reply
        assert plain(reply, text).startswith(f"{reply['fills'][0][0]['token']!r} 0.0")


def test_a_question_without_a_mask_is_a_bad_row(tokenizer: Any) -> None:
    with pytest.raises(BadRow, match=r"text has no \[MASK\]"):
        TASK.question({"text": "the dog"}, reading(tokenizer), truncate=False)
    long = {"text": "the dog sleeps " * 5 + "[MASK]"}
    assert len(TASK.question(long, reading(tokenizer, 8), truncate=False)["input_ids"]) > 8
    with pytest.raises(BadRow, match=r"the first 8 tokens of the text have no \[MASK\]"):
        TASK.question(long, reading(tokenizer, 8), truncate=True)


def test_what_may_be_hidden_and_how_much_is_shown(tokenizer: Any) -> None:
    (example,) = _encode("the dog", tokenizer)
    assert TASK.describe(example, Survey(), tokenizer) == "[CLS]«the dog»[SEP] (tokens hidden: 1)"


# Models


@pytest.mark.parametrize("name", MODELS)
def test_each_family_has_the_loss_of_plain_transformers_and_grows(name: str, tmp_path: Path) -> None:
    build(CLASSIFIERS[name], tmp_path / "base", AutoModelForMaskedLM)
    tokens = [f"<{number}>" for number in range(12)]  # more than the vocabulary has rows in spare
    recipe = write_trial(tmp_path, tmp_path / "base", "masked_lm", None, model={"add_tokens": tokens})
    trial = Trial(recipe)
    model = without_dropout(trial.load()).eval()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert len(model.get_output_embeddings().weight) == len(trial.reading.tokenizer)
    batch = as_scored(trial.task, trial.data.train.take(range(3)), trial.reading)
    ours = trial.task.loss_sum(trial.task.forward(model, batch), batch)
    theirs = model(**batch).loss * trial.task.num_items(batch)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    model.save_pretrained(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(
            AutoModelForMaskedLM.from_pretrained(tmp_path / "saved").eval()(**batch).logits, model(**batch).logits
        )


@pytest.mark.slow
@pytest.mark.parametrize("peft", [None, {"method": "lora"}], ids=["full", "lora"])
@pytest.mark.parametrize("name", MODELS)
def test_each_family_draws_one_curve_and_is_read_back(name: str, peft: dict[str, Any] | None, tmp_path: Path) -> None:
    assert not attempt(CLASSIFIERS[name], "masked_lm", peft, tmp_path, AutoModelForMaskedLM).refused
