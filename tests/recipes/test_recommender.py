"""The recommender: its data, what its scripts compute, and the whole chain with a tiny model."""

import json
import math
import random
import subprocess
import sys
from datetime import date, timedelta
from typing import Any

import make_shop
import numpy as np
import pytest
from blending import FEATURES, Blend
from bm25 import BM25
from candidates import NEAREST, POPULAR, Asked, pick
from measure import lists_of, relevant_items, tables
from prepare import lists, pairs
from rankings import diversity, interval, score
from shop import DEV_UNTIL, TRAIN_UNTIL, Event, Item, Mistake, Shop, chosen, interests, profile
from sklearn.metrics import ndcg_score

from tests.launching import ROOT, environment

RECIPE = ROOT / "recipes" / "recommender"
DAY = date(2026, 3, 1)


def ago(days: int, user: str, item: str, action: str) -> Event:
    return Event(DAY - timedelta(days=days), user, item, action)


def small_shop(*events: Event) -> Shop:
    items = {name: Item(name, f"Book {name}", f"About {name}", DAY - timedelta(days=400)) for name in "abcdefgh"}
    return Shop(items, sorted(events, key=lambda one: one.date))


@pytest.fixture(scope="module")
def whole() -> Shop:
    return Shop.read(RECIPE / "data")


# The data


def test_the_data_are_what_the_generator_writes(tmp_path):
    make_shop.write(tmp_path)
    for name in ("items.jsonl", "events.csv"):
        assert (tmp_path / name).read_bytes() == (RECIPE / "data" / name).read_bytes()


def test_a_buy_follows_a_click_follows_a_view_and_nothing_happens_before_it_is_out(whole):
    assert len(whole.items) == len({item.title for item in whole.items.values()}) == 300
    order: dict[tuple[str, str], list[str]] = {}
    for one in whole.events:
        assert one.date >= whole.items[one.item].out
        order.setdefault((one.user, one.item), []).append(one.action)
    assert {tuple(actions) for actions in order.values()} == {
        ("view",), ("view", "click"), ("view", "click", "buy"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("file", "before", "after", "said"),
    [
        ("events.csv", "view", "look", r"events.csv, line 2: .*no action 'look'"),
        ("events.csv", "date,", "day,", r"events.csv, line 2: KeyError\('date'\)"),
        ("items.jsonl", '"out": "20', '"out": "', r"items.jsonl, line 1: "),
    ],
)
def test_what_cannot_be_read_is_told_by_its_line(tmp_path, file, before, after, said):
    for name in ("items.jsonl", "events.csv"):
        text = "".join((RECIPE / "data" / name).read_text().splitlines(keepends=True)[: 300 if name < "f" else None])
        (tmp_path / name).write_text(text.replace(before, after, 1) if name == file else text)
    with pytest.raises(Mistake, match=said):
        Shop.read(tmp_path)
    with pytest.raises(Mistake, match="No such file"):
        Shop.read(tmp_path / "none")


# Users


def test_interests_weigh_the_strongest_action_and_halve_in_thirty_days():
    events = [ago(1, "u", "a", "view"), ago(1, "u", "a", "buy"), ago(31, "u", "b", "buy"), ago(0, "u", "c", "view")]
    found = interests(events, DAY)
    assert list(found) == ["a", "b", "c"]
    assert found["a"] == (pytest.approx(4 * 0.5 ** (1 / 30)), "buy")
    assert found["b"][0] == pytest.approx(found["a"][0] / 2) and found["c"] == (1.0, "view")
    shop = small_shop(*events, ago(5, "u", "d", "click"))
    assert profile(shop, shop.of("u"), DAY) == "bought Book a; bought Book b; clicked Book d"
    assert profile(shop, [], DAY) == ""


def test_popularity_weighs_the_actions_of_the_last_thirty_days():
    shop = small_shop(
        ago(30, "u", "a", "buy"), ago(31, "u", "b", "buy"), ago(1, "v", "a", "view"), ago(0, "v", "c", "buy")
    )
    found = shop.popularity(DAY)
    assert (found["a"], found["b"], found["c"], found["d"]) == (5, 0, 0, 0)


def test_what_a_list_should_have_named_is_new_clicked_or_bought_and_was_out():
    earlier = [ago(9, "u", "a", "view"), ago(9, "v", "b", "buy")]
    later = [ago(0, "u", item, action) for item, action in [("a", "buy"), ("b", "view"), ("c", "click"), ("d", "buy")]]
    assert chosen(later, earlier[:1]) == ["c", "d"]
    shop = small_shop(*earlier, *later, ago(0, "new", "c", "buy"))
    fresh = Item("d", "Book d", "", DAY + timedelta(days=1))
    assert relevant_items(Shop({**shop.items, "d": fresh}, shop.events), DAY, date.max) == {"u": ["c"]}


def test_what_was_done_to_an_announced_item_counts_from_the_day_it_is_out():
    shop = small_shop(ago(9, "u", "a", "buy"), ago(2, "u", "d", "view"), ago(1, "v", "d", "click"))
    shop = Shop({**shop.items, "d": Item("d", "Book d", "", DAY + timedelta(days=1))}, shop.events)
    for day, items, note in [
        (DAY, "a", "2 events are left out: their items were not out on 2026-03-01"),
        (DAY + timedelta(days=1), "add", ""),
        (DAY - timedelta(days=1), "a", "1 events are left out: their items were not out on 2026-02-28"),
        (DAY - timedelta(days=5), "a", ""),
    ]:
        earlier = shop.before(day)
        assert "".join(one.item for one in earlier.events) == items and shop.left_out(day) == note
        assert "bought Book a" in profile(earlier, earlier.of("u"), day)
        assert earlier.popularity(day).keys() == earlier.items.keys()


# What the models learn from


def test_a_user_who_has_come_across_all_items_learns_from_those_of_the_day():
    days = {item: number for number, item in enumerate("hgfedcba")}
    shop = small_shop(*(ago(days[item], "u", item, "buy") for item in days))
    found = lists(shop, date.min, DAY + timedelta(days=1), random.Random(0))
    assert [len(one["labels"]) > 1 for one in found] == [True] * 5, "the last day has nothing to rank"


def test_what_is_learnt_is_told_by_what_was_known_on_that_day(whole):
    shop = small_shop(
        ago(9, "u", "a", "buy"), ago(8, "u", "b", "view"),
        ago(2, "u", "c", "view"), ago(2, "u", "c", "click"), ago(2, "u", "d", "view"), ago(2, "u", "a", "click"),
        ago(0, "u", "e", "buy"),
    )  # fmt: skip
    (row,) = pairs(shop, date.min, DAY)
    assert row == {"query": "bought Book a; viewed Book b", "positive": "Book c. About c"}
    (graded,) = lists(shop, date.min, DAY, random.Random(0))
    grades = dict(zip(graded["documents"], graded["labels"], strict=True))
    assert grades.pop("Book c. About c") == 1 and grades.pop("Book d. About d") == 0
    assert grades and set(grades.values()) == {0} and not {"Book a. About a", "Book b. About b"} & grades.keys()
    # Nothing of the dev and test periods is learnt
    some = Shop(whole.items, [one for one in whole.events if one.user < "u040"])
    learnt = pairs(some, date.min, TRAIN_UNTIL)
    assert learnt and learnt == pairs(some.before(TRAIN_UNTIL), date.min, TRAIN_UNTIL)


# Lists


def test_bm25_is_what_is_computed_by_hand():
    texts = {"x": "the ferry sails", "y": "the ferry, the Ferry sails far", "z": "a quiet valley"}
    found = BM25(texts, k1=1.2, b=0.75).scores("Ferry ferry island")
    rarity = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))  # in two of three texts; lengths 3, 6 and 3, on average 4
    x = 1 * 2.2 / (1 + 1.2 * (0.25 + 0.75 * 3 / 4))
    y = 2 * 2.2 / (2 + 1.2 * (0.25 + 0.75 * 6 / 4))
    assert found == pytest.approx({"x": 2 * rarity * x, "y": 2 * rarity * y, "z": 0.0})


def test_scores_of_a_list_are_scikit_learn_s():
    draw = random.Random(0)
    corpus = [f"i{n}" for n in range(30)]
    for _ in range(50):
        order = draw.sample(corpus, 30)
        relevant = draw.sample(corpus, draw.randint(1, 14))
        found = score(order, relevant)
        labels = [[item in relevant for item in order]]
        assert found["ndcg@10"] == pytest.approx(ndcg_score(labels, [range(30, 0, -1)], k=10))
        hits = [rank for rank, item in enumerate(order[:10], 1) if item in relevant]
        assert found["recall@10"] == pytest.approx(len(hits) / len(relevant))
        assert found["mrr"] == (1 / hits[0] if hits else 0)
    assert score(["a"], ["b"]) == {"ndcg@10": 0, "recall@10": 0, "mrr": 0}


def test_an_interval_covers_the_mean_as_the_normal_one_does_and_is_the_same_each_time():
    values = list(np.random.default_rng(1).normal(0.3, 0.2, 400))
    low, high = interval(values)
    assert (low + high) / 2 == pytest.approx(np.mean(values), abs=2e-3)
    assert high - low == pytest.approx(2 * 1.96 * np.std(values) / 20, rel=0.05)
    assert interval(values) == (low, high)


def test_diversity_by_hand():
    vectors = {"a": [1.0, 0.0], "b": [0.0, 1.0], "c": [1.0, 0.0], "d": [0.0, -1.0]}
    found = diversity([["a", "b"], ["a", "c"]], vectors)
    assert found["distance"] == pytest.approx((1 + 0) / 2)
    assert found["coverage"] == pytest.approx(3 / 4)
    times = [0, 1, 1, 2]  # Gini: half the mean difference over the mean
    gini = sum(abs(x - y) for x in times for y in times) / (2 * 16 * np.mean(times))
    assert found["gini"] == pytest.approx(gini)
    assert diversity([["a", "b"], ["c", "d"]], vectors)["gini"] == pytest.approx(0)


def test_candidates_are_the_nearest_and_then_the_most_popular_others():
    nearest, popular = [f"i{n:02}" for n in range(40)], [f"i{n:02}" for n in range(39, -1, -1)]
    found = pick(nearest, ["i03", *popular])
    assert found == nearest[:NEAREST] + popular[:POPULAR]


def test_a_blend_is_the_logistic_regression_of_scikit_learn_and_its_parts_make_the_score(tmp_path):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    draw = np.random.default_rng(0)
    values = draw.normal(5, [1, 2, 3, 4], (200, 4))
    values[:, 3] = 7.0  # a feature that never varies
    labels = values[:, 0] + draw.normal(0, 0.5, 200) > 5
    rows = [dict(zip(FEATURES, row, strict=True)) for row in values]
    blend = Blend.fit(rows, list(labels))
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=1.0)).fit(values, labels)
    expected = theirs.decision_function(values) - theirs[-1].intercept_[0]
    assert [blend.score(row) for row in rows] == pytest.approx(list(expected), abs=1e-6)
    assert blend.weights["similarity"] > 1 and blend.weights["recency"] == 0
    assert sum(blend.parts(rows[0]).values()) == blend.score(rows[0])
    blend.write(tmp_path / "blend.json")
    assert Blend.read(tmp_path / "blend.json") == blend


def test_each_way_orders_by_its_own_number_and_gains_are_of_the_same_users():
    shop = small_shop()
    named = [*"abcdefgh"]
    features = {item: dict.fromkeys(FEATURES, 0.0) for item in named[:4]}
    for number, item in enumerate("cbad"):
        features[item] |= {"relevance": -number, "recency": number}
    blend = Blend(
        {**dict.fromkeys(FEATURES, 0.0), "recency": 2.0}, dict.fromkeys(FEATURES, 0.5), dict.fromkeys(FEATURES, 1.0)
    )
    asked = Asked("u", "bought Book g", nearest=named, popular=named[::-1], features=features)
    found = lists_of([asked, asked], shop, blend)
    told = {name: "".join(lists_of_way[0]) for name, lists_of_way in found.items()}
    expected = {"popularity": "hgfedcba", "BM25": "gabcdefh", "bi-encoder": "abcdefgh", "cross-encoder": "cbad"}
    assert told == {**expected, "blend": "dabc"}
    table = tables(found, [["d"], ["a"]], {item: [1.0, 0.0] for item in named}).splitlines()
    assert table[2].startswith("| popularity | ") and table[6].startswith("| blend | ")
    assert table[6].endswith("| 0.750 (0.500 to 1.000) |")  # MRR of 1 and of 1/2
    assert table[9].startswith("| blend less bi-encoder | ") and table[9].endswith("| +0.125 (-0.500 to +0.750) |")


# The whole chain


@pytest.mark.slow
def test_the_whole_chain_with_a_tiny_model(tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    shop = Shop.read(RECIPE / "data")
    new = next(item for item in shop.items.values() if item.out > DEV_UNTIL)
    named = {*list(shop.items)[:60], new.name}
    for name in ("items.jsonl", "events.csv"):  # a fifth of the items
        lines = (RECIPE / "data" / name).read_text().splitlines(keepends=True)
        kept = [line for line in lines if not line.startswith(("2026", "{")) or any(item in line for item in named)]
        (data / name).write_text("".join(kept))

    with open(data / "events.csv", "a", encoding="utf-8") as file:  # an announced book is viewed
        file.write(f"{TRAIN_UNTIL - timedelta(days=1)},u001,{new.name},view\n")

    def make(step: str, *words: str, code: int = 0) -> str:
        places = [f"RUN={run}", f"DATA={data}", f"PYTHON={sys.executable}"]
        command = ["make", "-C", str(RECIPE), step, *places, *words]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=540)
        assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    model = "--model.path recipes/tiny-bert --model.init random"
    small = f"{model} --data.cache_dir {tmp_path / 'cache'} --train.max_steps 3"
    make("models", f"EMBEDDING={small} --eval.every 3", f"RANKING={small} --eval.every 3")
    out = make("measure", "MEASURE=--dev_users 20 --users 12")
    assert out.count("1 events are left out") == 2  # of dev and of test
    assert "test: 12 of" in out and "| blend less popularity |" in out
    told = json.loads((run / "lists.json").read_text())
    earlier = shop.before(DEV_UNTIL)
    for lists_of_way in told["lists"].values():
        for user, listed in zip(told["users"], lists_of_way, strict=True):
            assert len(set(listed)) == 10 and not set(listed) & {one.item for one in earlier.of(user)}
    user = told["users"][0]
    script = [sys.executable, str(RECIPE / "recommend.py"), user, "--data", str(data), "--run", str(run)]
    script += ["--day", DEV_UNTIL.isoformat(), "--json"]
    done = subprocess.run(script, env=environment(), capture_output=True, text=True, check=True)
    assert "recommend.py: 1 events are left out: their items were not out on 2026-03-22" in done.stderr
    recommended: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["item"] for one in recommended] == told["lists"]["blend"][0]
    own = {one.item for one in earlier.of(user)}
    for one in recommended:
        assert one["score"] == pytest.approx(sum(one["parts"].values()))
        assert one["like"] and {other["item"] for other in one["like"]} <= own
    assert "'nobody' has done nothing before" in make("recommend", "USERNAME=nobody", code=2)
