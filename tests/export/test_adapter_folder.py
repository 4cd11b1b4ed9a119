"""What lies beside an adapter, as its readers find it: labels, stop tokens, its base, here and after a move."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import onecurve.export.adapter_folder
from onecurve.adapters import add_adapter
from onecurve.config import PeftSection
from onecurve.export.adapter_folder import BASE
from onecurve.export.model_folder import save_alone
from tests.adapters.test_exported import ids, logits, read_plainly

READERS = ("peft", "autopeft", "transformers", "pipeline", "card")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def names(number: int) -> list[str]:
    return [f"class {i}" for i in range(number)]


def export(base: str | Path, folder: Path, number: int | None, method: str = "lora", **fields) -> None:
    """Write an adapter for labels, or with None for a language model that ends at two tokens, and what it computes."""
    torch.manual_seed(7)
    if number is None:
        model = AutoModelForCausalLM.from_pretrained(base)
        model.generation_config.eos_token_id = [2, 4]
    else:
        model = AutoModelForSequenceClassification.from_pretrained(
            base, id2label=dict(enumerate(names(number))), ignore_mismatched_sizes=True
        )
    task, new = ("CAUSAL_LM", []) if number is None else ("SEQ_CLS", ["classifier"])
    model = add_adapter(model, PeftSection(method=method, **fields), task_type=task, new_modules=new)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    model.eval()
    save_alone(folder, model, AutoTokenizer.from_pretrained(base), str)
    torch.save((ids(), logits(model)), folder / "logits.pt")


def sharded(source: Path, folder: Path) -> Path:
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(folder, max_shard_size="50KB")
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def with_five_labels(source: Path, folder: Path) -> Path:
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(source, num_labels=5).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def refuse(*_):
    raise OSError(95, "Operation not supported")


@pytest.fixture(scope="module")
def parent(tmp_path_factory, tiny_bert, tiny_llama):
    parent = tmp_path_factory.mktemp("folders")
    for number in (2, 3, 20):
        export(tiny_bert, parent / f"labels-{number}", number)
    export(tiny_llama, parent / "language", None)
    export(with_five_labels(tiny_bert, parent / "five"), parent / "other-labels", 3)
    export(sharded(tiny_llama, parent / "shards"), parent / "sharded", None)
    half = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype="bfloat16")
    half.save_pretrained(parent / "half-base")
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(parent / "half-base")
    export(parent / "half-base", parent / "half", None)
    export(tiny_bert, parent / "moved-from" / "model", 3)
    (parent / "moved-from").rename(parent / "moved-to")
    edited = shutil.copytree(parent / "moved-to" / "model", parent / "edited", symlinks=True) / "adapter_config.json"
    settings = json.loads(edited.read_text()) | {"base_model_name_or_path": str(parent / "edited" / BASE)}
    edited.write_text(json.dumps(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onecurve.export.adapter_folder.Path, "symlink_to", refuse)
        export(tiny_bert, parent / "unlinked", 3)
    export(tiny_bert, parent / "prompt", 3, "prompt_tuning", num_virtual_tokens=4)
    export(tiny_bert, parent / "bottleneck", 3, "bottleneck")
    return parent


@pytest.fixture(scope="module")
def read(parent):
    return read_plainly(parent, *READERS)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("number", [2, 3, 20])
def test_every_reader_knows_the_labels(read, number, reader):
    found = read[f"labels-{number}"][reader]
    for one in found if reader == "card" else [found]:
        assert one == [0.0, names(number), None]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["language", "sharded"])
def test_every_reader_of_a_language_model_knows_where_it_stops(read, name, reader):
    found = read[name][reader]
    for one in found if reader == "card" else [found]:
        assert (one[0], one[2]) == (0.0, [2, 4])


@pytest.mark.parametrize("reader", READERS)
def test_a_base_with_a_head_for_other_labels_is_copied_without_it_for_every_reader(read, parent, reader):
    found = read["other-labels"][reader]
    for one in found if reader == "card" else [found]:
        assert one == [0.0, names(3), None]
    copy = parent / "other-labels" / BASE / "model.safetensors"
    assert not copy.is_symlink()
    with safe_open(copy, "pt") as ours, safe_open(parent / "five" / "model.safetensors", "pt") as base:
        assert set(base.keys()) - set(ours.keys()) == {"classifier.bias", "classifier.weight"}
        assert all(torch.equal(ours.get_tensor(name), base.get_tensor(name)) for name in ours.keys())
    card = " ".join((parent / "other-labels" / "README.md").read_text().split())
    assert f"holds the weights of `{parent / 'five'}` without its head, which is for other labels" in card


def test_transformers_rounds_an_adapter_on_a_base_in_half_precision_which_the_card_says(read, parent):
    for reader in ("peft", "autopeft"):
        assert read["half"][reader][::2] == [0.0, [2, 4]]
    for reader in ("transformers", "pipeline"):
        assert 0.0 < read["half"][reader][0] < 0.05
    assert "transformers rounds the adapter to bfloat16" in (parent / "half" / "README.md").read_text()
    assert "rounds" not in (parent / "language" / "README.md").read_text()


def test_the_weights_of_the_base_are_links(parent, tiny_bert):
    folder = parent / "labels-3"
    assert (folder / BASE / "model.safetensors").resolve() == (tiny_bert / "model.safetensors").resolve()
    sizes = [path.lstat().st_size for path in folder.rglob("*") if "tokenizer" not in path.name]
    assert sum(sizes) < (tiny_bert / "model.safetensors").stat().st_size / 2


def test_a_moved_folder_still_loads_but_for_autopeft_which_the_card_says(read, parent):
    found = read["moved-to/model"]
    for reader in ("peft", "transformers", "pipeline"):
        assert found[reader] == [0.0, names(3), None], reader
    assert "moved-from/model/base" in found["autopeft"]
    card = (parent / "moved-to" / "model" / "README.md").read_text()
    assert "after moving this folder, change `base_model_name_or_path` there" in " ".join(card.split())


def test_the_change_that_the_card_names_lets_autopeft_load_a_moved_folder(read):
    assert read["edited"]["autopeft"] == [0.0, names(3), None]


def test_the_card_of_a_prompt_or_a_bottleneck_says_what_it_takes(read, parent):
    for name, said in (("prompt", "transformers alone loads no prompt_tuning"), ("bottleneck", "onecurve's own")):
        assert len(read[name]["card"]) == 2
        assert all(found == [0.0, names(3), None] for found in read[name]["card"])
        assert said in (parent / name / "README.md").read_text()
    assert read["prompt"]["autopeft"] == [0.0, names(3), None]
    assert "BOTTLENECK" in read["bottleneck"]["peft"]


def test_on_a_disk_without_links_peft_still_loads_it(read, parent):
    assert not list((parent / "unlinked").rglob("model.safetensors"))
    assert read["unlinked"]["card"] == [[0.0, names(3), None]]


HUB = """
import sys
from pathlib import Path
from tests.export.test_adapter_folder import export
for number in (2, 3):
    export("org/bert", Path(sys.argv[1]) / f"labels-{number}", number)
export("org/five", Path(sys.argv[1]) / "other-labels", 3)
export("org/llama", Path(sys.argv[1]) / "language", None)
"""


@pytest.mark.slow
def test_a_base_of_the_hub_keeps_its_name_and_its_commit(tiny_bert, tiny_llama, tmp_path, monkeypatch):
    cache, parent = tmp_path / "cache", tmp_path / "folders"
    five = with_five_labels(tiny_bert, tmp_path / "five")
    for name, source in (("bert", tiny_bert), ("five", five), ("llama", tiny_llama)):
        repository = cache / f"models--org--{name}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(COMMIT)
        shutil.copytree(source, repository / "snapshots" / COMMIT)
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    parent.mkdir()
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", HUB, parent], check=True, cwd=root, env={**os.environ, "PYTHONPATH": "."})
    for name, base in (("labels-3", "org/bert"), ("language", "org/llama")):
        settings = json.loads((parent / name / "adapter_config.json").read_text())
        assert (settings["base_model_name_or_path"], settings["revision"]) == (base, COMMIT)
    found = read_plainly(parent, *READERS, "autopeft with labels")
    for number in (2, 3):
        for reader in ("peft", "transformers", "pipeline", "autopeft with labels"):
            assert found[f"labels-{number}"][reader] == [0.0, names(number), None], reader
        assert [one[:2] for one in found[f"labels-{number}"]["card"]] == [[0.0, names(number)]] * 3
    for reader in ("peft", "transformers", "pipeline", "autopeft"):
        assert found["other-labels"][reader] == [0.0, names(3), None], reader
    assert "size mismatch" in found["labels-3"]["autopeft"]
    assert "give it `id2label`" in (parent / "labels-3" / "README.md").read_text()
    for reader in ("peft", "transformers", "pipeline"):
        assert found["language"][reader][::2] == [0.0, [2, 4]]
    assert all(one[::2] == [0.0, [2, 4]] for one in found["language"]["card"])
    assert found["language"]["autopeft"][0] == 0.0

    # another machine has the name, not the links
    shutil.rmtree(parent / "labels-2")
    for link in parent.rglob("model.safetensors"):
        link.unlink()
    found = read_plainly(parent, "card", "autopeft")
    assert found["labels-3"]["card"][2] == [0.0, names(3), None]
    assert found["language"]["card"][2][::2] == [0.0, [2, 4]]
    assert found["language"]["autopeft"][0] == 0.0


def test_a_vocabulary_of_a_head_alone_is_no_embedding():
    import torch
    from transformers import AutoModelForCTC, BertConfig, BertModel, Wav2Vec2Config

    from onecurve.export.adapter_folder import has_token_embeddings

    with torch.device("meta"):
        assert not has_token_embeddings(AutoModelForCTC.from_config(Wav2Vec2Config(num_hidden_layers=1)))
        assert has_token_embeddings(BertModel(BertConfig(num_hidden_layers=1)))
