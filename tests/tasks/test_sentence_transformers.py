"""What the folders of sentence-transformers say of a model's vectors, read and followed."""

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from onecurve import predict
from onecurve.config import TaskSection, read_yaml
from onecurve.data.cache_key import task_identity
from onecurve.errors import ConfigError
from onecurve.model.beside import following
from onecurve.preflight import read as preflight
from onecurve.tasks import load_task
from tests.launching import write_recipe
from tests.local_hub import serving

KINDS = ("Transformer", "Pooling", "Normalize")
TEXTS = ["the quick brown fox", "in the sun"]
ROWS = [
    {"query": "where does the dog sleep?", "positive": "the dog sleeps in the sun", "negative": "a lazy dog"},
    {"query": "what is there?", "positive": "there is no answer.", "negative": "the fox"},
    {"query": "were we happy?", "positive": "we were happy, and they were not.", "negative": "the film"},
]


def _built(base: Path, folder: Path, pooling: str, normalize: bool, dense: bool = False) -> Path:
    """A folder that sentence-transformers itself has saved."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense, Normalize, Pooling, Transformer

    bert = Transformer(str(base), max_seq_length=24)
    size: int = bert.get_embedding_dimension()  # type: ignore[assignment]
    modules: list[Any] = [bert, Pooling(size, pooling)]
    modules += [Dense(size, 8)] * dense + [Normalize()] * normalize
    prompts = {"query": "query: ", "document": "text: "}
    SentenceTransformer(modules=modules, prompts=prompts, device="cpu").save(str(folder))
    return folder


def _encoded(folder: Path, texts: list[str]) -> list[list[list[float]]]:
    """What sentence-transformers makes of texts: plainly, as queries, as documents."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    return [way(texts).tolist() for way in (model.encode, model.encode_query, model.encode_document)]


def _write(folder: Path, name: str, content: Any) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))


def _modules(kinds: Any) -> list[dict[str, Any]]:
    paths = ["" if at == 0 else f"{at}_{kind.rpartition('.')[2]}" for at, kind in enumerate(kinds)]
    names = [kind if "." in kind else f"sentence_transformers.models.{kind}" for kind in kinds]
    return [{"idx": at, "name": str(at), "path": paths[at], "type": name} for at, name in enumerate(names)]


@pytest.fixture
def folder(tiny_bert: Path, tmp_path: Path) -> Path:
    """A model as BAAI/bge-small-en-v1.5 lies on the hub."""
    copytree(tiny_bert, tmp_path / "cls")
    _write(tmp_path / "cls", "modules.json", _modules(KINDS))
    _write(
        tmp_path / "cls", "1_Pooling/config.json", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    )
    _write(tmp_path / "cls", "sentence_bert_config.json", {"max_seq_length": 24, "do_lower_case": False})
    _write(tmp_path / "cls", "config_sentence_transformers.json", {"prompts": {"query": "find: "}})
    return tmp_path / "cls"


def _recipe(folder: Path, model: str, peft: dict[str, Any] | None = None, **task: Any) -> Path:
    data = folder / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return write_recipe(
        folder / "recipe.yaml",
        output_dir=str(folder / "run"),
        task={"name": "text_embedding", **task},
        model={"path": model},
        data={"train": str(data), "cache_dir": str(folder / "cache"), "max_length": 24},
        optim={"lr": 1e-30},
        train={"max_steps": 1, "global_batch_size": 3, "micro_batch_size": 1},
        **({"peft": peft} if peft else {}),
    )


def test_settings_are_those_of_the_folder(folder: Path, tmp_path: Path) -> None:
    checked = preflight([str(_recipe(tmp_path, str(folder)))])
    settings = checked.task.settings
    assert (settings.pooling, settings.normalize, settings.similarity) == ("cls", True, "cosine")
    assert (settings.query_prompt, settings.document_prompt) == ("find: ", "")
    assert checked.resolved["task"]["pooling"] == "cls"  # so a run that goes on compares it
    assert "pooling: cls # 1_Pooling/config.json of the model" in " ".join(checked.config.split())
    assert task_identity(checked.task)["task_settings"]["query_prompt"] == "find: "  # and the cache of examples
    assert checked.task.notes[0] == f"task.normalize true: as modules.json of {folder} says"
    (tmp_path / "again.yaml").write_text(checked.config)  # a resolved recipe is a recipe
    again = preflight([str(tmp_path / "again.yaml")])
    assert again.resolved == checked.resolved and again.task.notes == []


def test_a_setting_of_the_recipe_that_differs_is_used_and_told(folder: Path, tmp_path: Path) -> None:
    checked = preflight([str(_recipe(tmp_path, str(folder), pooling="mean", query_prompt="", normalize=True))])
    assert checked.task.settings.pooling == "mean" and checked.task.settings.query_prompt == ""
    assert checked.task.notes[-2:] == [
        f"task.pooling is mean, and 1_Pooling/config.json of {folder} says cls",
        f"task.query_prompt is '', and config_sentence_transformers.json of {folder} says 'find: '",
    ]
    assert not any("task.normalize" in note for note in checked.task.notes)


def test_a_folder_of_transformers_alone_has_the_defaults(tiny_bert: Path, tmp_path: Path) -> None:
    task = preflight([str(_recipe(tmp_path, str(tiny_bert)))]).task
    assert (task.settings.pooling, task.settings.normalize, task.settings.query_prompt) == ("mean", True, "")
    assert task.notes == []
    assert load_task(TaskSection(name="text_embedding", normalize=False)).settings.similarity == "dot"


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        (
            "modules.json",
            _modules(["Transformer", "Pooling", "Dense", "Normalize"]),
            "Transformer, Pooling, Dense, Norm",
        ),
        ("modules.json", _modules(["Transformer"]), "modules.json has Transformer, and only"),
        ("modules.json", _modules(["custom_st.Transformer", "Pooling"]), "custom_st.Transformer, Pooling"),
        ("modules.json", [{"type": "sentence_transformers.models.Transformer"}], "only Transformer and Pooling"),
        ("modules.json", {"Transformer": 1}, "cannot be understood"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "has the pooling max, and there is one of cls"),
        ("1_Pooling/config.json", {"pooling_mode": ["mean", "cls"]}, "has the pooling mean and cls"),
        ("1_Pooling/config.json", {"pooling_mode": "cls", "include_prompt": False}, "include_prompt is false"),
        ("config_sentence_transformers.json", {"similarity_fn_name": "euclidean"}, "similarity euclidean"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "one for fill-mask"),
        ("sentence_bert_config.json", {"do_lower_case": True}, "sets do_lower_case"),
    ],
    ids=[
        "dense",
        "alone",
        "custom",
        "no place",
        "no list",
        "max",
        "two",
        "prompt left out",
        "euclidean",
        "mlm",
        "lower",
    ],
)
def test_what_the_task_does_not_have_is_refused_before_weights_load(
    folder: Path, tmp_path: Path, name: str, content: Any, why: str
) -> None:
    _write(folder, name, content)
    (folder / "model.safetensors").write_bytes(b"not read")
    with pytest.raises(ConfigError, match=why) as refused:
        preflight([str(_recipe(tmp_path, str(folder)))])
    assert refused.value.where == "model.path" and "\n" not in refused.value.what
    with pytest.raises(ConfigError, match=why):
        predict(folder, [{"query": "a"}], task="text_embedding")


def test_a_hub_s_model_is_asked_for_its_files(
    folder: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    from onecurve.config import ModelSection
    from onecurve.machine.hub import reachable

    def found(name: str, **settings: Any) -> Any:
        task: Any = load_task(TaskSection(name="text_embedding", **settings))
        return following(task, ModelSection(path=name)).settings.pooling

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with serving({"models/org/cls": folder, "models/org/plain": tiny_bert}) as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        reachable.cache_clear()
        assert [found("org/cls"), found("org/plain"), found("org/none")] == ["cls", "mean", "mean"]
    assert "model.safetensors" not in hub.asked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # as of now from the local copy
    reachable.cache_clear()
    assert [found("org/cls"), found("org/plain"), found("org/none")] == ["cls", "mean", "mean"]
    (absent,) = (tmp_path / "hub").glob("models--org--plain/.no_exist/*/modules.json")
    absent.unlink()
    (snapshot,) = (tmp_path / "hub").glob("models--org--cls/snapshots/*")
    (tmp_path / "hub/models--org--plain/snapshots" / snapshot.name).mkdir(parents=True, exist_ok=True)
    (tmp_path / "hub/models--org--plain/snapshots" / snapshot.name / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="but not whether it has"):
        found("org/plain")
    every = {"normalize": True, "similarity": "cosine", "query_prompt": "", "document_prompt": ""}
    with pytest.raises(ConfigError, match=r"but not whether it has.* Or set what such a file may say: task\.pooling\."):
        found("org/plain", **every)
    assert found("org/plain", pooling="last", **every) == "last"  # nothing is left to ask
    reachable.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pooling", "normalize", "peft"),
    [("cls", True, {}), ("mean", False, {}), ("lasttoken", True, {}), ("cls", False, {"method": "lora"})],
    ids=["cls", "mean, not normalised", "last", "cls, LoRA"],
)
def test_a_folder_s_vectors_are_those_of_sentence_transformers_before_and_after_a_run(
    pooling: str, normalize: bool, peft: dict[str, Any], tiny_bert: Path, tmp_path: Path, forks: Any
) -> None:
    start = _built(tiny_bert, tmp_path / "start", pooling, normalize)
    texts = [*TEXTS, "a word " * 40]  # which is cut to what the folder says
    plain, queries, documents = _encoded(start, texts)
    assert plain[0] != queries[0] != documents[0]

    def same(folder: Path, **options: Any) -> None:
        for kind, vectors in (("query", queries), ("document", documents)):
            answers = predict(folder, [{kind: text} for text in texts], **options)
            for vector, answer in zip(vectors, answers, strict=True):
                assert answer["embedding"] == pytest.approx(vector, abs=1e-5)

    same(start, task="text_embedding")
    forks.train(_recipe(tmp_path, str(start), peft=peft), tmp_path / "run", "python")
    left = tmp_path / "run" / "model"
    same(left)
    again = _encoded(left, texts)
    for vector, before in zip(again[1] + again[2], queries + documents, strict=True):
        assert vector == pytest.approx(before, abs=1e-5)
    wanted = {"cls": "cls", "mean": "mean", "lasttoken": "last"}[pooling]
    assert read_yaml((tmp_path / "run" / "config.yaml").read_text())["task"]["pooling"] == wanted


@pytest.mark.slow
def test_a_dense_layer_of_sentence_transformers_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    start = _built(tiny_bert, tmp_path / "start", "cls", normalize=True, dense=True)
    with pytest.raises(ConfigError, match="Transformer, Pooling, Dense, Normalize"):
        preflight([str(_recipe(tmp_path, str(start)))])
