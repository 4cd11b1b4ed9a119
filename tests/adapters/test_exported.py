"""Every PEFT method, trained by us, written by the exporter, and read by plain PEFT and transformers elsewhere."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
)

from onecurve.adapters import (
    add_adapter,
    bottleneck,  # noqa: F401  registers itself with PEFT
)
from onecurve.adapters.buffers import adapter_buffers
from onecurve.adapters.read_back import differences
from onecurve.adapters.refused import METHODS
from onecurve.config import PeftSection
from onecurve.export.model_folder import save_alone

ALLOWED = sorted({str(kind.value).lower() for kind in PEFT_TYPE_TO_CONFIG_MAPPING} - METHODS.keys())
FIELDS = {
    "adaption_prompt": {"adapter_len": 4, "adapter_layers": 2},
    "boft": {"boft_block_size": 4},
    "c3a": {"block_size": 8},
    "fourierft": {"n_frequency": 16},
    "ln_tuning": {"target_modules": ["LayerNorm"]},
    "miss": {"r": 8},
    "oft": {"r": 0, "oft_block_size": 8},
    "p_tuning": {"num_virtual_tokens": 4},
    "prefix_tuning": {"num_virtual_tokens": 4},
    "prompt_tuning": {"num_virtual_tokens": 4},
    "psoft": {"r": 8},
    "road": {"group_size": 8},
    "shira": {"r": 4},
    "trainable_tokens": {"token_indices": [5, 6]},
    "vblora": {"vector_length": 8, "num_vectors": 16},
    "waveft": {"n_frequency": 16},
}
"""What a method needs, or needs on models this small."""
ON_A_DECODER = {"adaption_prompt", "trainable_tokens"}
"""Methods that cannot train a new head."""
PROMPTS = {"adaption_prompt", "p_tuning", "prefix_tuning", "prompt_tuning"}
VARIANTS = {
    "dora": {"method": "lora", "use_dora": True},
    "pissa": {"method": "lora", "init_lora_weights": "pissa"},
    "projection_drawn_again": {"method": "vera", "save_projection": False},
    "prefix_by_mlp": {"method": "prefix_tuning", "num_virtual_tokens": 4, "prefix_projection": True},
}
SHARED = {
    m
    for m in ALLOWED
    if m != "bottleneck" and getattr(PEFT_TYPE_TO_TUNER_MAPPING[m.upper()], "uses_shared_state", False)
}
ROUTER = "copied_router"


def ids() -> torch.Tensor:
    return torch.randint(10, 200, (4, 12), generator=torch.Generator().manual_seed(0))


def trained(folder: Path, section: dict, decoder: bool = False) -> torch.nn.Module:
    """Load a base from its folder, put the method on it as a run does, and make a step."""
    torch.manual_seed(7)
    if decoder:
        model = AutoModelForCausalLM.from_pretrained(folder)
    else:
        labels = {0: "low", 1: "middle", 2: "high"}
        model = AutoModelForSequenceClassification.from_pretrained(
            folder,
            id2label=labels,
            label2id={name: i for i, name in labels.items()},
            ignore_mismatched_sizes=True,
        )
    task, new = ("CAUSAL_LM", []) if decoder else ("SEQ_CLS", ["classifier"])
    model = add_adapter(model, PeftSection(**section), task_type=task, new_modules=new)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()(input_ids=ids(), attention_mask=torch.ones_like(ids())).logits.square().sum().backward()
    optimizer.step()
    return model.eval()


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids(), attention_mask=torch.ones_like(ids())).logits


def read_plainly(parent: Path, *readers: str) -> dict[str, dict[str, Any]]:
    script = Path(__file__).with_name("read_plainly.py")
    done = subprocess.run(
        [sys.executable, script, parent, *readers], cwd=parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-1500:]
    return json.loads(done.stdout.splitlines()[-1])


def exact(found: object) -> bool:
    return isinstance(found, list) and found[0] == 0.0


@pytest.fixture(scope="module")
def deepseek(tmp_path_factory) -> Path:
    """A mixture of experts whose routers have a persistent buffer."""
    folder = tmp_path_factory.mktemp("deepseek")
    torch.manual_seed(0)
    config = DeepseekV3Config(
        vocab_size=320, hidden_size=32, intermediate_size=64, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, first_k_dense_replace=1, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=8, v_head_dim=8,
        qk_nope_head_dim=8, max_position_embeddings=64,
    )  # fmt: skip
    model = DeepseekV3ForCausalLM(config)
    model.model.layers[1].mlp.gate.e_score_correction_bias.copy_(torch.tensor([0.3, -0.2, 0.1, 0.0]))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def read(tmp_path_factory, tiny_bert, tiny_llama, deepseek):
    """What plain readers found in a folder of each method."""
    parent = tmp_path_factory.mktemp("exported")
    router = {"method": "lora", "target_modules": ["o_proj"], "modules_to_save": ["gate"]}
    cases = {name: ({"method": name, **FIELDS.get(name, {})}, name in ON_A_DECODER) for name in ALLOWED}
    cases |= {name: (section, False) for name, section in VARIANTS.items()}
    for name, (section, decoder) in [*cases.items(), (ROUTER, (router, True))]:
        base = deepseek if name == ROUTER else tiny_llama if decoder else tiny_bert
        model = trained(base, section, decoder)
        save_alone(parent / name, model, AutoTokenizer.from_pretrained(tiny_llama if decoder else tiny_bert), str)
        torch.save((ids(), logits(model)), parent / name / "logits.pt")
    return read_plainly(parent, "autopeft", "transformers")


OTHERS = [name for name in ALLOWED if name != "bottleneck"]


@pytest.mark.parametrize("name", [*OTHERS, *VARIANTS, ROUTER])
def test_peft_alone_computes_what_was_trained(read, name):
    assert exact(read[name]["autopeft"]), read[name]["autopeft"]


@pytest.mark.parametrize("name", [*OTHERS, *VARIANTS])
def test_transformers_alone_computes_it_too_or_says_that_it_cannot(read, name):
    found = read[name]["transformers"]
    if VARIANTS.get(name, {"method": name})["method"] in PROMPTS | SHARED:
        assert "does not support" in found
    else:
        assert found[0] == pytest.approx(0.0, abs=1e-6)


def test_the_bottleneck_adapter_is_unknown_where_onecurve_is_not_imported(read):
    assert read["bottleneck"] == dict.fromkeys(("autopeft", "transformers"), "KeyError: 'BOTTLENECK'")


def broken(folder: Path, edit) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["lora", "vera", "delora", "vblora", "prompt_tuning"])
def test_a_folder_that_lacks_or_changes_a_tensor_is_not_passed(tiny_bert, tmp_path, name):
    model = trained(tiny_bert, {"method": name, **FIELDS.get(name, {})})
    values = {k: v.data for k, v in model.named_parameters(remove_duplicate=False) if v.requires_grad}
    values |= dict(adapter_buffers(model, aliases=True))
    once = {value.data_ptr(): value for value in values.values()}
    values = {name: once[value.data_ptr()] for name, value in values.items()}  # as the exporter has what is shared
    model.save_pretrained(tmp_path, state_dict=dict(values))
    assert differences(tmp_path, model, values) == ""
    for key in load_file(tmp_path / "adapter_model.safetensors"):
        model.save_pretrained(tmp_path, state_dict=dict(values))
        broken(tmp_path, lambda tensors, key=key: tensors[key].view(-1)[:1].add_(1))
        assert differences(tmp_path, model, values), f"{key} is another"
        broken(tmp_path, lambda tensors, key=key: tensors.pop(key))
        assert differences(tmp_path, model, values), f"{key} is gone"


def test_a_folder_without_the_projections_of_frod_is_not_passed(tiny_bert, tmp_path):
    model = trained(tiny_bert, {"method": "frod"})
    values = {k: v.detach() for k, v in model.named_parameters() if v.requires_grad}
    model.save_pretrained(tmp_path, state_dict=dict(values))  # PEFT writes such a folder without a word
    assert "PEFT cannot load it: Specified to load FRoD projection" in differences(tmp_path, model, values)
