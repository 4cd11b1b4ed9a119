import pytest

from onecurve.metrics.transcripts import score_transcripts

jiwer = pytest.importorskip("jiwer")

PAIRS = [("one two", "one two three"), ("", "four"), ("five six seven", "five six"), ("ate nein", "eight nine")]


def test_errors_are_summed_over_the_split() -> None:
    scores = score_transcripts(PAIRS)
    # By hand: one word deleted, one deleted, one inserted, two substituted; of 8
    assert scores["words"] == {"substitutions": 2, "deletions": 2, "insertions": 1, "references": 8}
    assert scores["wer"] == pytest.approx(5 / 8)
    transcripts, references = map(list, zip(*PAIRS, strict=True))
    assert scores["cer"] == pytest.approx(jiwer.cer(references, transcripts))
    assert scores["characters"]["references"] == sum(map(len, references))
    assert scores["wer"] != pytest.approx(sum(jiwer.wer(r, t) for t, r in PAIRS) / 4)
