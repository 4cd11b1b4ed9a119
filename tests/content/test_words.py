from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertJapaneseTokenizer, PhobertTokenizer, PreTrainedTokenizerFast

from onecurve.content.words import number_words
from onecurve.errors import ConfigError

CORPUS = [
    "the quick brown fox jumps over the lazy dog and the dog sleeps in the sun",
    "unbelievable misunderstandings happen, don't they? 我爱北京天安门",
]
TEXT = "The misunderstandings don't  jump,\n\nover the sun 我爱 ok"


def _wordpiece() -> Any:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=90, special_tokens=["[UNK]"], show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


def _sentencepiece(split: bool) -> Any:
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=70, unk_token="<unk>", special_tokens=special, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(split=split)  # as Llama's: the whole text is one piece
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def _byte_level(trim: bool) -> Any:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    backend.post_processor = processors.ByteLevel(trim_offsets=trim)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def _words(tokenizer: Any, text: str) -> list[str]:
    """The words, each as its tokens written together, those of white space alone left out."""
    encoded = tokenizer(text, return_offsets_mapping=tokenizer.is_fast, add_special_tokens=False)
    found: dict[int, str] = defaultdict(str)
    for token, word in zip(encoded["input_ids"], number_words(tokenizer, text, encoded), strict=True):
        found[word] += tokenizer.convert_ids_to_tokens(token)
    assert list(found) == list(range(len(found)))
    marks = ("▁", "Ġ", "Ċ", "##", "@@")
    plain = []
    for word in found.values():
        for mark in marks:
            word = word.replace(mark, "")
        plain.append(word)
    return [word for word in plain if word]


SPACED = ["he", "misunderstandings", "don't", "jump,", "over", "the", "sun"]


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        pytest.param(_wordpiece(), "the misunderstandings don ' t jump , over the sun 我 爱".split(), id="wordpiece"),
        pytest.param(_byte_level(True), "The misunderstandings don 't jump , over the sun".split(), id="byte-level"),
        pytest.param(_byte_level(False), "The misunderstandings don 't jump , over the sun".split(), id="untrimmed"),
        pytest.param(_sentencepiece(True), ["<unk>he", *SPACED[1:4], "<unk>over", *SPACED[5:]], id="sentencepiece"),
        pytest.param(_sentencepiece(False), ["<unk>he", *SPACED[1:4], "<unk>over", *SPACED[5:]], id="unsplit"),
    ],
)
def test_the_tokens_of_a_word_have_its_number(tokenizer: Any, expected: list[str]) -> None:
    found = _words(tokenizer, TEXT)
    assert any(len(tokenizer.tokenize(word)) > 2 for word in expected), "no word of several tokens"
    assert found[: len(expected)] == expected and found[-1] == "ok"


@pytest.mark.parametrize("tokenizer", [_byte_level(True), _sentencepiece(True)], ids=["byte-level", "sentencepiece"])
def test_a_script_without_spaces_has_a_word_for_each_character(tokenizer: Any) -> None:
    assert len([word for word in _words(tokenizer, "我爱北京ok") if word]) == 5


def test_slow_tokenizers_are_read_by_their_marks(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join("[PAD] [UNK] [CLS] [SEP] [MASK] the un ##happy fox ##y".split()))
    japanese = BertJapaneseTokenizer(str(tmp_path / "vocab.txt"), word_tokenizer_type="basic")
    (tmp_path / "vocab.txt").write_text("the 10\nun@@ 5\nhappy 5\nfox@@ 3\ny 2\n")
    merges = ("t h", "th e</w>", "u n", "h a", "ha p", "hap p", "happ y</w>", "f o", "fo x")
    (tmp_path / "bpe.codes").write_text("".join(f"{pair} 5\n" for pair in merges))
    vietnamese = PhobertTokenizer(str(tmp_path / "vocab.txt"), str(tmp_path / "bpe.codes"))
    for tokenizer in (japanese, vietnamese):
        assert not tokenizer.is_fast
        assert len(tokenizer.tokenize("the unhappy foxy")) == 5
        assert _words(tokenizer, "the unhappy foxy") == ["the", "unhappy", "foxy"]


def test_a_vocabulary_without_marks_is_refused(tmp_path: Path) -> None:
    from transformers import EsmTokenizer

    (tmp_path / "vocab.txt").write_text("\n".join("<cls> <pad> <eos> <unk> A C D <mask>".split()))
    protein = EsmTokenizer(str(tmp_path / "vocab.txt"))
    assert not protein.is_fast
    with pytest.raises(ConfigError, match=r"task\.whole_word: the tokenizer tells neither .* Set it to false"):
        number_words(protein, "ACD", protein("ACD"))
