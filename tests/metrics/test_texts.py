"""Scores of generated texts: ROUGE against its definition, BLEU and chrF against sacrebleu's command."""

import json
import random
import subprocess
import sys
from functools import cache

import pytest

from onecurve.metrics.rouge import _common, score_rouge, tokens
from onecurve.metrics.texts import answer_of, score_texts


def test_words_where_there_are_spaces_and_characters_where_there_are_none():
    assert tokens("The cat's 2 HATS, naïve!") == ["the", "cat", "s", "2", "hats", "naïve"]
    assert tokens("我爱BERT模型。") == ["我", "爱", "bert", "模", "型"]
    assert tokens("これはペンです") == list("これはペンです")
    assert tokens("한국어 문장") == ["한국어", "문장"]
    assert tokens("हिन्दी में") == ["हिन्दी", "में"], "vowel signs are part of their word"
    assert tokens("ที่นี่") == ["ที่", "นี่"], "and in a script without spaces of their character"


def test_the_examples_of_the_paper():
    """Lin 2004, section 3.1: S1 is the reference; rouge-2 gives S2 and S3 the same, rouge-L does not."""
    reference = "police killed the gunman"
    two, three, four = "police kill the gunman", "the gunman kill police", "the gunman police killed"
    assert score_rouge([(two, reference)])["rougeL"] == pytest.approx(3 / 4)
    assert score_rouge([(three, reference)])["rougeL"] == pytest.approx(2 / 4)
    assert score_rouge([(four, reference)])["rougeL"] == pytest.approx(2 / 4)
    assert score_rouge([(two, reference)])["rouge2"] == score_rouge([(three, reference)])["rouge2"] == 1 / 3


def test_the_union_of_the_paper():
    """Lin 2004, section 3.2: a reference line w1..w5 against w1 w3 w8 w9 w5 and w1 w2 w6 w7 w8: 4 of its 5 words."""
    scores = score_rouge([("w1 w3 w8 w9 w5\nw1 w2 w6 w7 w8", "w1 w2 w3 w4 w5")])
    recall, precision = 4 / 5, 4 / 10
    assert scores["rougeLsum"] == pytest.approx(2 * recall * precision / (recall + precision))
    assert scores["rougeL"] == pytest.approx(2 * 3 / 15), "w1 w3 w5: one sequence over both lines"


def test_counts_are_clipped_and_the_mean_is_over_pairs():
    scores = score_rouge([("the the the", "the cat"), ("", "a b"), ("天气很好", "天气不好")])
    assert scores["rouge1"] == pytest.approx((2 * 1 / 5 + 0 + 2 * 3 / 8) / 3)
    assert scores["rouge2"] == pytest.approx((0 + 0 + 2 * 1 / 6) / 3)
    assert scores["rougeL"] == pytest.approx((2 * 1 / 5 + 0 + 2 * 3 / 8) / 3)


def test_common_subsequences_are_the_longest():
    draw = random.Random(3)
    for _ in range(200):
        one, other = (tuple(draw.choice("abcd") for _ in range(draw.randrange(12))) for _ in range(2))

        @cache
        def longest(i, j, one=one, other=other):
            if not i or not j:
                return 0
            if one[i - 1] == other[j - 1]:
                return longest(i - 1, j - 1) + 1
            return max(longest(i - 1, j), longest(i, j - 1))

        places = _common(list(one), list(other))
        rest = iter(other)
        assert len(places) == longest(len(one), len(other))
        assert all(one[place] in rest for place in reversed(places)), "not a subsequence of both"


@pytest.mark.parametrize(
    ("text", "pattern", "answer"),
    [
        (" so it is 7 \n", None, "so it is 7"),
        ("3 + 4 #### 6\n#### 1,007", r"#### (-?[0-9,]+)", "1,007"),
        ("7 or 8", r"\d", "8"),
        ("seven", r"\d", None),
        ("x=3", r"(y)?=(\d)", "3"),
    ],
)
def test_the_answer_is_the_last_match(text, pattern, answer):
    assert answer_of(text, pattern) == answer


def test_a_text_without_an_answer_is_wrong():
    pairs = [("#### 7", "it is\n#### 7"), ("seven", "#### 7"), ("7", "#### 7")]
    assert score_texts(pairs, ["exact_match"], "13a", r"#### (\d+)") == {"exact_match": 1 / 3}
    assert score_texts([(" a\n", "a"), ("A", "a")], ["exact_match"], "13a", None) == {"exact_match": 0.5}


@pytest.mark.parametrize("tokenizer", ["13a", "zh"])
def test_bleu_and_chrf_are_those_of_sacrebleus_command(tmp_path, tokenizer):
    pytest.importorskip("sacrebleu")
    pairs = {
        "13a": [("The dog sleeps in the sun, now.", "The dog is asleep in the sun, now."), ("No.", "Not at all!")],
        "zh": [("今天的天气很好", "今天的天气真的很好"), ("我爱你", "我很爱你")],
    }[tokenizer]
    for name, column in zip(("text", "reference"), zip(*pairs, strict=True), strict=True):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in column))
    words = [sys.executable, "-m", "sacrebleu", "reference", "-i", "text", "-m", "bleu", "chrf", "-tok", tokenizer]
    done = subprocess.run([*words, "-w", "6"], cwd=tmp_path, capture_output=True, text=True, check=True)
    bleu, chrf = json.loads(done.stdout)
    ours = score_texts(pairs, ["chrf", "bleu"], tokenizer, None)
    assert ours["bleu"] == pytest.approx(bleu["score"], abs=1e-6) and 0 < ours["bleu"] < 100
    assert ours["chrf"] == pytest.approx(chrf["score"], abs=1e-6)
    assert ours["signatures"] == {"bleu": bleu["signature"], "chrf": chrf["signature"]}
    assert f"tok:{tokenizer}" in ours["signatures"]["bleu"]
