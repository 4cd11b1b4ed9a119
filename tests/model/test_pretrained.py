"""Which weights may be new: on checkpoints of many architectures, with plain transformers as the oracle."""

import json
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from onecurve.config import Recipe, TaskSection
from onecurve.errors import ConfigError
from onecurve.model.loading import load_model
from onecurve.tasks import load_task
from onecurve.tasks.base import Survey

SIZES = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
POSITIONS = {"max_position_embeddings": 40}
LLAMA = {**SIZES, "num_key_value_heads": 2, "pad_token_id": 0, "tie_word_embeddings": False}
T5 = {"vocab_size": 61, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
DISTILBERT = {"vocab_size": 61, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, **POSITIONS}
GPT2 = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "pad_token_id": 0}
GPT_NEO = {
    **{
        "vocab_size": 61,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "intermediate_size": 64,
        "pad_token_id": 0,
    },
    "attention_types": [[["global"], 2]],
}
MIXTRAL = {**LLAMA, "num_local_experts": 2, "num_experts_per_tok": 1}

FAMILIES: dict[str, tuple[str, dict[str, Any], Any, str]] = {
    # name: config class, its fields, what the checkpoint is of, and all that a classifier then has to draw
    "bert": ("Bert", {**SIZES, **POSITIONS}, AutoModelForMaskedLM, "classifier bert.pooler.dense"),
    "roberta": ("Roberta", {**SIZES, **POSITIONS}, AutoModelForMaskedLM, "classifier.dense classifier.out_proj"),
    "distilbert": ("DistilBert", DISTILBERT, AutoModelForMaskedLM, "pre_classifier classifier"),
    "electra": (
        "Electra",
        {**SIZES, **POSITIONS, "embedding_size": 16},
        AutoModelForMaskedLM,
        "classifier.dense classifier.out_proj",
    ),
    "deberta": ("DebertaV2", {**SIZES, **POSITIONS}, AutoModelForMaskedLM, "pooler.dense classifier"),
    "albert": (
        "Albert",
        {**SIZES, **POSITIONS, "embedding_size": 16},
        AutoModelForMaskedLM,
        "albert.pooler classifier",
    ),
    "mpnet": ("MPNet", {**SIZES, **POSITIONS}, AutoModelForMaskedLM, "classifier.dense classifier.out_proj"),
    "modernbert": ("ModernBert", {**SIZES, "pad_token_id": 0}, AutoModelForMaskedLM, "classifier"),
    "llama": ("Llama", LLAMA, AutoModelForCausalLM, "score"),
    "tied llama": ("Llama", {**LLAMA, "tie_word_embeddings": True}, AutoModelForCausalLM, "score"),
    "qwen2": ("Qwen2", LLAMA, AutoModelForCausalLM, "score"),
    "mixtral, whose experts transformers fuses": ("Mixtral", MIXTRAL, AutoModelForCausalLM, "score"),
    "gpt2": ("GPT2", GPT2, AutoModelForCausalLM, "score"),
    "gpt_neo": ("GPTNeo", GPT_NEO, AutoModelForCausalLM, "score"),
    "t5": ("T5", T5, AutoModelForSeq2SeqLM, "classification_head.dense classification_head.out_proj"),
}


def load(folder: Path, task: str = "text_classification", seed: int = 0, labels: str = "abc", **sections: Any) -> Any:
    recipe = Recipe.model_validate(
        {
            "output_dir": "unused",
            "task": {"name": task},
            "model": {"path": str(folder), **sections.pop("model", {})},
            "data": {"train": "unused"},
            "train": {"max_steps": 1, "global_batch_size": 2, "micro_batch_size": 2},
            "seed": seed,
            **sections,
        }
    )
    survey = Survey(list(labels)) if task == "text_classification" else Survey()
    return load_model(recipe, load_task(TaskSection(name=task)), AutoConfig.from_pretrained(folder), survey, "no")


def save(folder: Path, family: str, kind: Any = None, **fields: Any) -> Path:
    name, sizes, usual, _ = FAMILIES[family]
    torch.manual_seed(1)
    model = (kind or usual).from_config(getattr(transformers, f"{name}Config")(**sizes, **fields))
    model.save_pretrained(folder)
    return folder


def edit(folder: Path, **config: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))


def rewrite(folder: Path, change: Any) -> None:
    """Have `change` return what the file holds of its dict of tensors."""
    file = folder / "model.safetensors"
    save_file(change({name: tensor.clone() for name, tensor in load_file(file).items()}), file, {"format": "pt"})


@pytest.mark.parametrize("family", FAMILIES)
def test_of_a_language_model_a_classifier_takes_everything_but_its_head(tmp_path: Path, family: str) -> None:
    save(tmp_path, family)
    model, other = load(tmp_path), load(tmp_path, seed=1)
    theirs = type(model).from_pretrained(tmp_path, num_labels=3, dtype="float32").state_dict()
    new = {name for name, value in model.state_dict().items() if not torch.equal(value, theirs[name])}
    drawn = {name for name, value in model.named_parameters() if name.rpartition(".")[0] in FAMILIES[family][3].split()}
    assert {name.split(" ")[0] for name in model.new_weights.removesuffix(": drawn at random").split("], ")} == drawn
    assert new == {name for name in drawn if not name.endswith("bias")}, "biases start at zero, and both say so"
    for name, value in model.named_parameters():
        assert value.isfinite().all()
        assert torch.equal(value, other.get_parameter(name)) == (name not in new), (
            "only what is new depends on the seed"
        )
        if name in new:
            assert 0.7 < value.std() / theirs[name].std() < 1.4, "the model's own initialisation"


def test_the_base_of_an_encoder_gives_its_pooler(tmp_path: Path) -> None:
    save(tmp_path, "bert", transformers.AutoModel)
    assert load(tmp_path).new_weights == "classifier.weight [3, 32], classifier.bias [3]: drawn at random"


def test_a_trained_head_stays_and_one_for_other_labels_is_drawn(tmp_path: Path) -> None:
    names = {"id2label": dict(enumerate("abc")), "label2id": {name: n for n, name in enumerate("abc")}}
    save(tmp_path, "roberta", transformers.AutoModelForSequenceClassification, **names)
    stored = load_file(tmp_path / "model.safetensors")
    same, other = load(tmp_path), load(tmp_path, labels="ab")
    assert same.new_weights == ""
    assert torch.equal(same.classifier.out_proj.weight, stored["classifier.out_proj.weight"])
    assert other.new_weights == (
        "classifier.out_proj.weight [2, 32] instead of the checkpoint's [3, 32], "
        "classifier.out_proj.bias [2] instead of the checkpoint's [3]: drawn at random"
    )
    assert torch.equal(other.classifier.dense.weight, stored["classifier.dense.weight"])


@pytest.mark.parametrize("family", ["gpt2", "tied llama", "llama", "t5"])
def test_a_head_is_drawn_as_wide_as_the_model_says(tmp_path: Path, family: str) -> None:
    """T5 initialises its head from the module around the layers: the square root of one over the width."""
    model = load(save(tmp_path, family))
    weights = [value for name, value in model.named_parameters() if name in model.new_weights and value.dim() == 2]
    wanted = 1 / sqrt(32) if family == "t5" else 0.02
    assert all(0.75 < value.std() / wanted < 1.25 for value in weights)


EDITED = {
    "a token more": (
        "bert",
        {"vocab_size": 62},
        r"1 of another shape \(bert.*word_embeddings.weight \[61, 32\] instead",
    ),
    "a layer more": ("bert", {"num_hidden_layers": 3}, r"16 missing \(bert.encoder.layer.2.att"),
    "a layer fewer": ("bert", {"num_hidden_layers": 1}, r"16 that the model would not use \(bert.encoder.layer.1"),
    "a layer fewer of a decoder": (
        "llama",
        {"num_hidden_layers": 1},
        r"9 that the model would not use \(model.layers.1",
    ),
    "wider": ("gpt2", {"n_inner": 96}, r"of another shape \(transformer.h.0.mlp.c_fc.bias"),
    "another model": ("qwen2", {"model_type": "llama"}, r"6 that the model would not use \(model.layers.0.self_attn.k"),
}


@pytest.mark.parametrize("case", EDITED)
def test_a_config_of_other_weights_is_refused(tmp_path: Path, case: str) -> None:
    family, config, said = EDITED[case]
    edit(save(tmp_path, family), **config)
    with pytest.raises(ConfigError, match=said) as refused:
        load(tmp_path)
    assert refused.value.where == "model.path"


def without(*parts: str) -> Any:
    return lambda weights: {name: w for name, w in weights.items() if not any(part in name for part in parts)}


DAMAGED = {
    "another prefix": (
        "bert",
        lambda weights: {f"net.{n}": w for n, w in weights.items()},
        r"of other names \(net.bert",
    ),
    "one tensor lost": ("roberta", without("layer.1.output.dense.weight"), r"1 missing \(roberta.encoder.layer.1.out"),
    "embeddings lost": ("tied llama", without("embed_tokens"), r"missing \(model.embed_tokens.weight\)"),
    "a bias lost": ("distilbert", without("ffn.lin1.bias"), r"2 missing \(distilbert.transformer.layer.0.ffn.lin1.b"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_backbone_with_a_gap_is_refused(tmp_path: Path, case: str) -> None:
    family, change, said = DAMAGED[case]
    rewrite(save(tmp_path, family), change)
    with pytest.raises(ConfigError, match=said):
        load(tmp_path)


def test_what_earlier_versions_stored_and_other_tasks_need_is_no_mistake(tmp_path: Path) -> None:
    extras = {
        "gpt2": {
            "transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8),
            "transformer.h.0.attn.masked_bias": torch.ones(()),
        },
        "gpt_neo": {"transformer.h.0.attn.attention.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool)},
        "bert": {"bert.embeddings.position_ids": torch.arange(40)[None], "cls.seq_relationship.bias": torch.ones(2)},
        "roberta": {"roberta.pooler.dense.weight": torch.ones(32, 32), "qa_outputs.bias": torch.ones(2)},
        "llama": {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "mtp.layers.0.weight": torch.ones(4)},
    }
    for family, more in extras.items():
        folder = save(tmp_path / family, family)
        before = load(folder).state_dict()
        rewrite(folder, lambda weights, more=more: weights | more)
        after = load(folder).state_dict()
        assert all(torch.equal(value, before[name]) for name, value in after.items()), family


def test_names_from_before_are_no_gap(tmp_path: Path) -> None:
    def old(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        names = {
            n: n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            for n in weights
        }
        return {names[name]: tensor for name, tensor in weights.items()}

    before = load(save(tmp_path, "bert")).state_dict()
    rewrite(tmp_path, old)
    after = load(tmp_path).state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


@pytest.mark.parametrize(("family", "kind"), [("llama", transformers.AutoModel), ("bert", transformers.AutoModel)])
def test_a_language_model_s_head_is_never_drawn(tmp_path: Path, family: str, kind: Any) -> None:
    save(tmp_path, family, kind)
    with pytest.raises(ConfigError, match="All weights of a language model must be in the checkpoint") as refused:
        load(tmp_path, "causal_lm")
    assert refused.value.where == "model.path"


ENCODERS = [name for name, (_, _, kind, _) in FAMILIES.items() if kind is AutoModelForMaskedLM]


@pytest.mark.parametrize("family", ENCODERS)
def test_a_masked_language_model_is_whole_or_has_its_head_drawn_and_named(tmp_path: Path, family: str) -> None:
    whole = load(save(tmp_path / "whole", family), "masked_lm")
    theirs = AutoModelForMaskedLM.from_pretrained(tmp_path / "whole", dtype="float32").state_dict()
    assert whole.new_weights == ""
    assert all(torch.equal(value, theirs[name]) for name, value in whole.state_dict().items())

    save(tmp_path / "base", family, transformers.AutoModel)
    model = load(tmp_path / "base", "masked_lm")
    head = {name for name, _ in model.named_parameters() if not name.startswith(f"{model.base_model_prefix}.")}
    assert head and {new.split(" ")[0] for new in model.new_weights.split("], ")} == head
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    stored = load_file(tmp_path / "base" / "model.safetensors")
    given = {name.removeprefix(f"{model.base_model_prefix}."): value for name, value in model.state_dict().items()}
    assert all(torch.equal(given[name], value) for name, value in stored.items() if "pooler" not in name)
    with pytest.raises(ConfigError, match=r"lora cannot train the new .*: it shares a weight with the embeddings"):
        load(tmp_path / "base", "masked_lm", peft={"method": "lora"})
    assert load(tmp_path / "whole", "masked_lm", peft={"method": "lora"}).new_weights == ""


def test_a_bias_of_the_language_model_s_head_is_not_dropped(tmp_path: Path) -> None:
    save(tmp_path, "llama")
    rewrite(tmp_path, lambda weights: weights | {"lm_head.bias": torch.ones(61)})
    with pytest.raises(ConfigError, match=r"would not use \(lm_head.bias\)"):
        load(tmp_path, "causal_lm")


@pytest.mark.parametrize("family", ["llama", "tied llama", "gpt2", "mixtral, whose experts transformers fuses"])
def test_a_whole_language_model_has_nothing_new(tmp_path: Path, family: str) -> None:
    model = load(save(tmp_path, family), "causal_lm")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="float32").state_dict()
    assert model.new_weights == ""
    assert all(torch.equal(value, theirs[name]) for name, value in model.state_dict().items())


def test_a_tied_head_is_where_the_embeddings_are(tmp_path: Path) -> None:
    save(tmp_path, "tied llama", transformers.AutoModel)
    model = load(tmp_path, "causal_lm")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, load_file(tmp_path / "model.safetensors")["embed_tokens.weight"])


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    save(tmp_path, "bert")
    whole, file = load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(
        ConfigError, match=r"has a weight file that is cut off or damaged: .* Copy or download it again"
    ):
        load(tmp_path)
    file.unlink()
    torch.save(whole, tmp_path / "pytorch_model.bin")
    assert load(tmp_path).new_weights.startswith("bert.pooler")
    (tmp_path / "pytorch_model.bin").write_bytes((tmp_path / "pytorch_model.bin").read_bytes()[:5000])
    with pytest.raises(ConfigError, match="cannot be"):
        load(tmp_path)


def test_what_the_model_does_not_initialise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, "gpt2")
    monkeypatch.setattr(transformers.GPT2PreTrainedModel, "_init_weights", lambda self, module: None)
    with pytest.raises(ConfigError, match=r"lacks score.weight, and GPT2ForSequence.* does not initialise it"):
        load(tmp_path)
