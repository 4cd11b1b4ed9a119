"""What sentence-transformers, in a process of its own, makes of the folders that text embedding and ranking leave."""

import json
import subprocess
import sys

import pytest

from tests.launching import write_recipe

pytestmark = pytest.mark.slow

ROWS = [
    {"query": "where does the dog sleep?", "positive": "the dog sleeps in the sun", "negative": "a lazy dog"},
    {"query": "what is there?", "positive": "there is no answer.", "negative": "the fox"},
    {"query": "were we happy?", "positive": "we were happy, and they were not.", "negative": "the film"},
]
TEXTS = ["the quick brown fox", "in the sun"]
EMBED = """
import json, sys
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu")
texts = json.loads(sys.argv[2])
ours = [model.encode_query(texts), model.encode_document(texts)]
print(json.dumps({"vectors": [one.tolist() for one in ours], "length": model.max_seq_length,
                  "similarity": str(model.similarity_fn_name)}))
"""
RANK = """
import json, sys, torch
from sentence_transformers import CrossEncoder
pairs = [tuple(pair) for pair in json.loads(sys.argv[2])]
print(json.dumps(CrossEncoder(sys.argv[1], device="cpu").predict(pairs, activation_fn=torch.nn.Identity()).tolist()))
"""


def _read(code, folder, given):
    done = subprocess.run([sys.executable, "-c", code, str(folder), json.dumps(given)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def _trained(task, folder, model, forks, **sections):
    data = folder / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    recipe = write_recipe(
        folder / "recipe.yaml",
        output_dir="unused",
        task=task,
        model={"path": str(model)},
        data={"train": str(data), "cache_dir": str(folder / "cache"), "max_length": 40},
        optim={"lr": 1e-2},
        train={"max_steps": 2, "global_batch_size": 3, "micro_batch_size": 1},
        **sections,
    )
    forks.train(recipe, folder / "run", "python")
    return folder / "run" / "model"


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_vectors_are_those_of_onecurve(pooling, tiny_bert, tmp_path, forks):
    from onecurve import predict

    prompts = {"query_prompt": "query: ", "document_prompt": "text: "}
    peft = {"peft": {"method": "lora"}} if pooling == "cls" else {}
    task = {"name": "text_embedding", "pooling": pooling, **prompts}
    folder = _trained(task, tmp_path, tiny_bert, forks, **peft)
    told = _read(EMBED, folder, TEXTS)
    for kind, vectors in zip(("query", "document"), told["vectors"], strict=True):
        ours = predict(folder, [{kind: text} for text in TEXTS])
        for vector, answer in zip(vectors, ours, strict=True):
            assert answer["embedding"] == pytest.approx(vector, abs=1e-5)
    assert told["length"] == 40 and "cosine" in told["similarity"]


def test_scores_are_those_of_onecurve(tiny_bert, tmp_path, forks):
    from onecurve import predict

    folder = _trained({"name": "text_ranking", "loss": "pairwise"}, tmp_path, tiny_bert, forks)
    rows = [{"query": "what is there?", "document": text} for text in TEXTS]
    theirs = _read(RANK, folder, [[row["query"], row["document"]] for row in rows])
    assert [answer["score"] for answer in predict(folder, rows)] == pytest.approx(theirs, abs=1e-5)
    (listed,) = predict(folder, [{"query": "what is there?", "documents": TEXTS}])
    assert listed["scores"] == pytest.approx(theirs, abs=1e-5)
