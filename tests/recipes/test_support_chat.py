"""recipes/support_chat: what its scripts compute, its data, and all of its steps at toy size."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onecurve
from onecurve.errors import ConfigError, DataError
from tests.launching import ROOT, environment
from tests.tiny_models import build_tiny_bert

sys.path.insert(0, str(ROOT / "recipes" / "support_chat"))
import answer
import training_rows
from answer import Bot, converse
from passages import LONGEST, Passage, read_documents, sentences, split_document
from prompt import NOT_FOUND, SYSTEM, messages
from retrieval import Encoder, Found, Words, best_sentence, top
from score_answers import _print_preferences, holds, interval, model_folder, preferred, rank, read_test, recall

HERE = ROOT / "recipes" / "support_chat"
RESET = Passage("reset.md", "Reset", "Restart", "Wait 20 seconds. Then plug it in.")
LIGHT = Passage("light.md", "Light", "Colours", "White is good. Orange means no internet.")
SHOP = Passage("shop.md", "Shop", "", "We sell routers.")
ALL = [RESET, LIGHT, SHOP]


class Scored:
    """A search whose scores are given by question; any other question finds nothing."""

    def __init__(self, scores: Mapping[str, Sequence[float]]) -> None:
        self.passages, self.by_question = ALL, scores

    def scores(self, question: str) -> Any:
        return np.array(self.by_question.get(question, [0.0] * len(ALL)))

    def compare(self, question: str, texts: Sequence[str]) -> Any:
        return np.arange(len(texts))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_bert(tmp_path_factory.mktemp("encoder") / "bert", max_position_embeddings=1024)


def questions(name: str) -> list[dict[str, Any]]:
    return training_rows.read_questions(HERE / "data" / f"{name}.jsonl")


# Documents


def test_a_section_is_a_passage_and_a_long_one_several() -> None:
    text = (
        "# Router\n\nIntro.\n\n## One\n\nFirst line\ngoes on. Second.\n\n- a\n- b\n\n## Two\n```\n## no heading\n```\n"
    )
    found = list(split_document("a/b.md", text))
    assert [(one.title, one.section, one.text) for one in found] == [
        ("Router", "", "Intro."),
        ("Router", "One", "First line goes on. Second. - a - b"),
        ("Router", "Two", "``` ## no heading ```"),
    ]
    assert found[1].whole == "Router: One\nFirst line goes on. Second. - a - b" and found[0].whole == "Router\nIntro."
    long = list(split_document("x.txt", "## Long\n" + "One two three four. " * 70))
    assert [one.title for one in long] == ["x"] * len(long)
    assert [len(one.text.split()) for one in long] == [LONGEST, LONGEST, 40]
    assert [*split_document("x.md", "# Only a title\n\n## And a section\n")] == []
    (unclosed,) = split_document("x.md", "```\n# code")
    assert unclosed.text == "``` # code"


def test_sentences_end_where_a_next_one_begins() -> None:
    assert sentences("It has 1.5 metres. Open \\\\router in it! Is it e.g. here? 3 years") == [
        "It has 1.5 metres.", "Open \\\\router in it!", "Is it e.g. here?", "3 years",
    ]  # fmt: skip


def test_a_folder_without_documents_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no folder"):
        read_documents(tmp_path / "nowhere")
    (tmp_path / "picture.png").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"no \.md or \.txt file"):
        read_documents(tmp_path)
    (tmp_path / "b.txt").write_text("Text.")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.md").write_text("# A\n\nText.")
    assert [one.document for one in read_documents(tmp_path)] == ["b.txt", "sub/a.md"]
    (tmp_path / "c.md").write_bytes(b"caf\xe9")
    with pytest.raises(ConfigError, match=r"c\.md' is not UTF-8"):
        read_documents(tmp_path)


# Search


def test_the_best_passages_come_first_and_ties_in_the_order_of_the_folder() -> None:
    assert top(Scored({"q": [0.1, 0.9, 0.1]}), "q", 2) == [Found(LIGHT, 0.9), Found(RESET, 0.1)]
    assert rank(Scored({"q": [0.1, 0.9, 0.1]}), "q", SHOP) == 3


def test_words_rank_as_bm25_does() -> None:
    search = Words(ALL)
    assert top(search, "What does orange mean?", 1)[0].passage == LIGHT
    # By hand: "orange" stands once in one of three passages of 9, 9 and 4 words
    weight, length = np.log(1 + 2.5 / 1.5), 9 / ((9 + 9 + 4) / 3)
    assert search.scores("orange")[1] == pytest.approx(weight * 2.5 / (1 + 1.5 * (0.25 + 0.75 * length)))
    assert search.scores("unknown words").tolist() == [0, 0, 0]
    assert best_sentence(search, "orange or red?", LIGHT) == "Orange means no internet."


def test_vectors_are_the_model_s_and_kept_by_what_model_and_passages_hold(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    search = Encoder(encoder, ALL, tmp_path)
    tokenizer, bert = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()

    def vector(text: str) -> Any:
        with torch.no_grad():
            hidden = bert(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        return torch.nn.functional.normalize(hidden, dim=-1).numpy()

    expected = [vector(one.whole) @ vector("orange?") for one in ALL]
    assert search.scores("orange?") == pytest.approx(expected, abs=1e-5)
    assert search.compare("orange?", ["a b", "c"])[1] == pytest.approx(vector("c") @ vector("orange?"), abs=1e-5)
    assert len([*tmp_path.iterdir()]) == 1

    embed = Encoder._embed
    monkeypatch.setattr(Encoder, "_embed", lambda *_: pytest.fail("embedded again"))
    again = Encoder(encoder, ALL, tmp_path)
    monkeypatch.setattr(Encoder, "_embed", embed)
    assert (again.vectors == search.vectors).all()
    changed = Encoder(encoder, [RESET, LIGHT, Passage("shop.md", "Shop", "", "We sell cables.")], tmp_path)
    assert (changed.vectors[:2] == search.vectors[:2]).all() and (changed.vectors[2] != search.vectors[2]).any()
    other = Encoder(build_tiny_bert(tmp_path / "other", seed=1), ALL, tmp_path / "cache")
    assert other.vectors[0] != pytest.approx(search.vectors[0])
    names = [{path.name for path in folder.glob("*.npy")} for folder in (tmp_path, tmp_path / "cache")]
    assert [len(one) for one in names] == [2, 1] and not names[0] & names[1]


def test_a_passage_that_the_encoder_would_cut_is_refused(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is longer than the encoder reads"):
        Encoder(encoder, [Passage("x.md", "X", "", "word " * 300)], tmp_path)
    assert not [*tmp_path.iterdir()]


# Answers


def test_the_prompt_has_the_passages_the_history_and_the_question() -> None:
    assert messages("Why?", [RESET, SHOP], [("Before?", "Yes.")]) == [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "Before?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": f"[1] {RESET.whole}\n\n[2] Shop\nWe sell routers.\n\nQuestion: Why?"},
    ]


class Model:
    """Notes what it is asked, and answers by number."""

    def __init__(self) -> None:
        self.prompts: list[Any] = []

    def predict(self, rows: list[dict[str, Any]], max_new_tokens: int) -> list[dict[str, Any]]:
        self.prompts += [row["prompt"] for row in rows]
        return [{"error": "is too long"} if "long" in row["prompt"][-1]["content"] else {"text": " a "} for row in rows]


def test_below_the_threshold_the_documents_do_not_say() -> None:
    model = Model()
    bot = Bot(Scored({"light?": [0.1, 0.5, 0.2], "weak?": [0.1, 0.49, 0.2]}), model, threshold=0.5)
    known, weak = bot.answer_all(["light?", "weak?"])
    assert (known.text, [one.passage for one in known.found]) == ("a", [LIGHT, SHOP])
    assert (weak.text, weak.found) == (NOT_FOUND, [])
    assert model.prompts == [messages("light?", [LIGHT, SHOP])] and bot.history == []
    assert answer.shown(known) == "a\n  [1] light.md # Colours  0.500\n  [2] shop.md  0.200"
    without = Bot(Scored({"light?": [0.1, 0.5, 0.2]}), None, threshold=0.5)
    assert without.ask("light?").text == "Orange means no internet."


def test_a_question_that_refers_to_the_one_before_is_searched_with_it() -> None:
    model = Model()
    scores = {"restart?": [0.9, 0, 0], "restart? and then?": [0.8, 0, 0.1], "light?": [0, 0.9, 0]}
    bot = Bot(Scored(scores), model, threshold=0.5, passages=1)
    assert [bot.ask(one).found[0].passage for one in ("restart?", "and then?", "light?")] == [RESET, RESET, LIGHT]
    assert model.prompts[2] == messages("light?", [LIGHT], [("restart?", "a"), ("and then?", "a")])
    bot.history.clear()
    assert bot.ask("and then?").text == NOT_FOUND


def test_a_conversation_goes_on_after_a_question_that_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    bot = Bot(Scored({"light?": [0, 0.9, 0], "long?": [0, 0.9, 0]}), Model(), threshold=0.5, passages=1)
    assert converse(bot, ["light?\n", "\n", "long?\n", "/reset\n", "light?\n", "/exit\n", "light?\n"]) == 1
    out, err = capsys.readouterr()
    assert out == "a\n  [1] light.md # Colours  0.900\n" * 2
    assert "'long?' is too long. Ask with fewer --passages, or /reset." in err
    assert bot.history == [("light?", "a")]


def test_the_model_reads_the_prompt_through_its_chat_template(tiny_llama: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, llama = (
        AutoTokenizer.from_pretrained(tiny_llama),
        AutoModelForCausalLM.from_pretrained(tiny_llama).eval(),
    )
    model = onecurve.load(tiny_llama, task="sft")
    bot = Bot(Scored({"light?": [0, 0.9, 0]}), model, threshold=0.5, passages=1, max_new_tokens=4)
    text = tokenizer.apply_chat_template(messages("light?", [LIGHT]), tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    written = llama.generate(input_ids=ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :]
    assert bot.ask("light?").text == tokenizer.decode(written, skip_special_tokens=True).strip() != ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--run", "nowhere"], "there is no 'nowhere/threshold.json'. Run the steps of the Makefile first"),
        (["--threshold", "0", "--documents", "nowhere"], "there is no folder 'nowhere' of documents."),
        (["--threshold", "0", "--encoder", "nowhere"], "'nowhere' is not a model folder"),
        (["--passages", "0"], "--passages: must be at least 1; got 0."),
    ],
)
def test_a_mistake_is_one_message(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer.main(["question?", *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"answer.py: {said}") and err.count("\n") == 1


# Training rows


def test_training_shows_the_passage_of_the_answer() -> None:
    search = Scored({"light?": [0.3, 0.1, 0.2], "else?": [0.3, 0.1, 0.2]})
    row = {"question": "light?", "document": "light.md", "section": "Colours"}
    assert training_rows.context(row, search, 2) == [RESET, LIGHT]
    assert training_rows.context(row, search, 3) == [RESET, SHOP, LIGHT]
    assert training_rows.context({"question": "else?", "document": None}, search, 2) == [RESET, SHOP]


def test_a_row_names_one_passage() -> None:
    parts = [Passage("a.md", "A", "One", "first words"), Passage("a.md", "A", "One", "other words here")]
    row = {"question": "q", "document": "a.md", "answer": "other things here"}
    assert training_rows.gold(row, parts) == parts[1]
    test = {"question": "q", "document": "a.md", "facts": [["first"], ["3", "other words"], ["here"]]}
    assert training_rows.gold(test, parts) == parts[1]
    assert training_rows.gold(test | {"facts": [["first"]]}, parts) == parts[0]
    with pytest.raises(DataError, match=r"names 'a\.md # Two', which is not in the documents"):
        training_rows.gold(row | {"section": "Two"}, parts)
    with pytest.raises(DataError, match=r"has several sections\. Name one in `section`"):
        training_rows.gold(row, [*parts, Passage("a.md", "A", "Two", "x")])


def test_rows_that_are_none_are_refused_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    for text, said in (
        ('{"question": "a", "answer": "b"}\n\n{"question": "a"}', "line 3: has no 'answer'"),
        ("{", "line 1: broken JSON"),
        ("[1]", "line 1: must be a JSON object"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=said):
            training_rows.read_questions(path, "answer")
    for facts, document, said in (
        (["12"], "a.md", "lists of spellings"),
        ([["12"]], None, "or neither"),
        ([], "a", "or"),
    ):
        path.write_text(json.dumps({"question": "q", "facts": facts, "document": document}))
        with pytest.raises(DataError, match=said):
            read_test(path)


def test_a_row_may_hold_any_separator_that_json_leaves_as_it_is(tmp_path: Path) -> None:
    rows = [{"question": f"a{separator}b", "answer": "c"} for separator in ("\u2028", "\u2029", "\x85")]
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert training_rows.read_questions(path, "answer") == rows
    numbers = {"logps/chosen": -1, "logps/rejected": -2, "rewards/chosen": 1, "rewards/rejected": 0}
    (tmp_path / "dpo").mkdir()
    (tmp_path / "dpo" / "config.yaml").write_text("task: {beta: 0.1, loss_type: sigmoid}\n")
    path = tmp_path / "dpo" / "predictions-test.jsonl"
    path.write_text("".join(json.dumps(row | numbers, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    _print_preferences([tmp_path])


def test_the_threshold_tells_questions_with_an_answer_from_those_without() -> None:
    scores = [(0.9, True), (0.5, True), (0.3, True), (0.4, False), (0.2, False), (0.1, False)]
    assert training_rows.choose_threshold(scores) == pytest.approx(0.25)  # as good as 0.45, and refuses fewer
    assert training_rows.choose_threshold([(0.9, True), (0.1, False)]) == 0.5
    assert training_rows.choose_threshold([(0.1, True), (0.9, False)]) < 0.1
    with pytest.raises(DataError, match="some with an answer and some without"):
        training_rows.choose_threshold([(0.9, True)])


# Scores


def test_a_fact_is_found_as_whole_words_and_numbers() -> None:
    assert holds("Wait for  Five\nminutes.", ["5 minutes", "five minutes"])
    assert holds("From 9:00 to 15:00.", ["15:00"]) and holds("It ends with -24.", ["-24"]) and holds("It is 5.", ["5"])
    assert not holds("It has 1.5 metres, 15 or 5.5.", ["5"]) and not holds("At 15:00", ["15"])
    assert recall("between 22:00 and 7:00", [["22:00"], ["07:00", "7:00"], ["noon"]]) == pytest.approx(2 / 3)


def test_the_interval_is_of_the_mean_over_questions() -> None:
    values = [0.0, 1.0] * 50
    low, high = interval(values)
    assert (low, high) == interval(values)
    assert low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.01) and high == pytest.approx(0.5 + 1.96 * 0.05, abs=0.01)


def test_preferences_before_and_after_are_told_apart() -> None:
    def pair(logps: tuple[float, float], reference: tuple[float, float]) -> dict[str, float]:
        rewards = [0.1 * (one - other) for one, other in zip(logps, reference, strict=True)]
        numbers = (*logps, *rewards)
        return dict(zip(("logps/chosen", "logps/rejected", "rewards/chosen", "rewards/rejected"), numbers, strict=True))

    found = preferred([pair((-10, -20), (-15, -12)), pair((-30, -20), (-40, -20))], 0.1)
    assert found == pytest.approx({"before": 0, "after": 0.5, "accuracy": 1.0, "margin": (1.3 + 1.0) / 2})


def test_the_untuned_model_of_a_hub_name_is_what_training_has_downloaded(tmp_path: Path) -> None:
    kept = tmp_path / "models--org--tiny"
    for name, text in (("refs/main", "0" * 40), (f"snapshots/{'0' * 40}/config.json", "{}")):
        (kept / name).parent.mkdir(parents=True)
        (kept / name).write_text(text)
    assert model_folder("org/tiny", tmp_path) == kept / "snapshots" / ("0" * 40)
    assert model_folder(str(kept)) == kept
    for absent in ("org/absent", "/no/folder/there"):
        with pytest.raises(ConfigError, match=r"--model: .* is no folder, and the hub's cache does not have it"):
            model_folder(absent, tmp_path)


# The data


def test_the_data_fit_the_documents() -> None:
    documents = read_documents(HERE / "documents")
    train, test = questions("questions-train"), questions("questions-test")
    asked = [row["question"] for name in ("train", "dev", "test") for row in questions(f"questions-{name}")]
    assert len(set(asked)) == len(asked) > 200 and len({one.document for one in documents}) > 20
    for row in [*train, *test, *questions("questions-dev"), *questions("preferences-train")]:
        assert (training_rows.gold(row, documents) is None) == (row["document"] is None)
    assert all(NOT_FOUND == row["answer"] for row in train if row["document"] is None)
    for row in test:
        place = [row["document"], row["section"]]
        told = [one["answer"] for one in train if [one["document"], one["section"]] == place]
        for fact in row["facts"]:
            assert holds(training_rows.gold(row, documents).text, fact), row
            assert any(holds(text, fact) for text in told) == row["learnt"], row
    pairs = {name: {row["question"] for row in questions(f"preferences-{name}")} for name in ("train", "test")}
    assert pairs["train"] <= {row["question"] for row in train} and not pairs["test"] & {
        row["question"] for row in train
    }


# Everything


@pytest.mark.slow
def test_every_step_at_toy_size(tmp_path: Path, encoder: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for path in (HERE / "data").glob("*.jsonl"):
        lines = path.read_text().splitlines()
        (data / path.name).write_text("\n".join([*lines[:12], *lines[-4:]]) + "\n")
    out = tmp_path / "run"
    few = "--train.epochs null --train.max_steps 2 --optim.warmup_steps 1 --eval.every 0"
    few += f" --data.cache_dir {tmp_path / 'cache'}"
    variables = {"OUT": out, "DATA": data, "ENCODER": encoder, "PYTHON": sys.executable}
    variables |= {"EMBED": f"{few} --data.max_length 1024"}  # its tokens are bytes
    variables |= {"SFT": f"{few} --peft.method lora --peft.target_modules all-linear"}
    variables |= {"DPO": f"{few} --peft.method lora"}  # trains that adapter further
    settings = environment() | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}

    def run(*words: Any) -> str:
        done = subprocess.run(
            list(map(str, words)), cwd=ROOT, env=settings, capture_output=True, text=True, timeout=1500, check=False
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout

    told = run("make", "-f", HERE / "Makefile", *(f"{name}={value}" for name, value in variables.items()))
    tables = [line.split("|")[1].strip() for line in told.splitlines() if line.startswith("| ")]
    assert tables[1:4] == ["BM25", "bi-encoder, untuned", "bi-encoder, tuned"]
    assert [name for name in tables if name.startswith("retrieval + ")] == [
        f"retrieval + {name} model" for name in ("untuned", "SFT", "SFT + DPO")
    ]
    assert f"{out}: 16" in tables
    rows = [json.loads(line) for line in (out / "rows" / "sft-train.jsonl").read_text().splitlines()]
    question = "What comes in the box with the T4?"
    documents = read_documents(HERE / "documents")
    search = Encoder(out / "embed", documents, out / "index")
    row = questions("questions-train")[0]
    assert rows[0] == {"prompt": messages(question, training_rows.context(row, search, 2)), "response": row["answer"]}

    said = run(sys.executable, HERE / "answer.py", question, "--run", out, "--threshold", "-1", "--max_new_tokens", "4")
    sources = [line for line in said.splitlines() if line.startswith("  [")]
    best = top(search, question, 2)
    assert [line.split()[1] for line in sources] == [one.passage.document for one in best]
