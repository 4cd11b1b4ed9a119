"""The private names of other packages that this one relies on, and why; a release that moves one fails here by name."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

SOURCES = Path(__file__).parents[1] / "src"
GROUPS = "torch.distributed.distributed_c10d"
STAGE_1_2 = "deepspeed.runtime.zero.stage_1_and_2.DeepSpeedZeroOptimizer"
STAGE_3 = "deepspeed.runtime.zero.stage3.DeepSpeedZeroOptimizer_Stage3"
OFFLOAD = "deepspeed.runtime.zero.parameter_offload.DeepSpeedZeRoOffload"
PARTITIONED = "deepspeed.runtime.zero.partition_parameters"
MODELS = "transformers.modeling_utils.PreTrainedModel"

RELIED_ON = [
    # torch
    (GROUPS, "_world", "every process group, DeepSpeed's too: time-outs, errors, how far a rank is"),
    (GROUPS, "_get_default_group", "the time-out of the group that `start` made"),
    (GROUPS, "_set_pg_timeout", "groups made without a time-out wait as long as the others"),
    ("torch.distributed.ProcessGroup", "_get_backend", "the backend's time-out and its errors"),
    ("torch.distributed.ProcessGroup", "_device_types", "which backends a group has"),
    ("torch.distributed.ProcessGroup", "_get_sequence_number_for_group", "of two ranks, the one that is behind"),
    ("torch._C._distributed_c10d.Backend.Options", "_timeout", "how long a group waits"),
    ("torch.distributed.Reducer", "_rebuild_buckets", "says whether all gradients of a pass were reduced"),
    ("torch.distributed.Reducer", "prepare_for_backward", "a pass whose gradients wait for the next one"),
    ("torch.nn.Module", "_buffers", "an adapter's buffers in another dtype"),
    ("torch.nn.Module", "_parameters", "whether a layer leaves out a parameter that it knows"),
    ("torch.nn.Module", "_modules", "takes the shared backbone out of a head's model"),
    ("torch.nn.Module", "_non_persistent_buffers_set", "which buffers are not saved"),
    ("torch.nn.Module", "_forward_pre_hooks", "takes DeepSpeed's hook off modules that release nothing"),
    ("torch.nn.Module", "_call_impl", "what a compiled layer calls"),
    ("torch.nn.Module", "_compiled_call_impl", "how torch calls a layer that was compiled"),
    ("torch", "_dynamo", "limits of how many graphs are compiled"),
    ("torch", "_foreach_lerp_", "averages all weights in one kernel"),
    ("torch", "_foreach_mul_", "unscales gradients in one kernel"),
    ("torch", "_foreach_norm", "norms of all gradients in one kernel, in float32"),
    ("torch.Tensor", "_version", "whether a buffer was written to"),
    ("torch._ops.OpOverload", "_schema", "an operator's name, and whether it writes to its argument"),
    ("torch.nn.modules.batchnorm", "_BatchNorm", "all kinds of batch normalisation"),
    ("torch.nn.modules.dropout", "_DropoutNd", "all kinds of dropout layers"),
    ("torch.utils._pytree", "tree_leaves", "tensors within what modules take and return"),
    ("torch.utils._pytree", "tree_map", "the same"),
    ("torch.utils._pytree", "tree_map_only", "the same"),
    ("torch.utils._python_dispatch", "TorchDispatchMode", "draws on the CPU what is drawn on a device"),
    ("torch.utils.cpp_extension", "FileBaton", "a lock for compilers that outlives none of them"),
    ("torch.utils.deterministic", "fill_uninitialized_memory", "train.deterministic does without it"),
    # transformers
    (MODELS, "_can_set_attn_implementation", "whether packed attention can be set"),
    (MODELS, "_supports_attention_backend", "the same"),
    (MODELS, "_from_config", "draws a head's own model, of which several share a backbone"),
    (MODELS, "_no_split_modules", "names the blocks of a model"),
    (MODELS, "_init_weights", "draws what a checkpoint lacks as the model itself would"),
    ("transformers.core_model_loading", "_weight_conversions", "under ZeRO-3 it would save under names from before"),
    ("transformers.modeling_layers.GradientCheckpointingLayer", "_gradient_checkpointing_func", "offloads inputs"),
    ("transformers.PreTrainedConfig", "_attn_implementation", "what attention was before packing"),
    ("transformers.models.auto.auto_factory._BaseAutoModelClass", "_model_mapping", "the AutoModel of a class"),
    ("transformers.integrations.deepspeed", "_hf_deepspeed_config_weak_ref", "loads whole models under ZeRO-3 too"),
    ("transformers.integrations.sdpa_attention", "sdpa_attention_forward", "attends where nothing is packed"),
    ("transformers.masking_utils", "sdpa_mask", "masks where nothing is packed"),
    ("transformers.initialization", "guard_torch_init_functions", "leaves loaded weights alone while drawing"),
    # datasets
    ("datasets.Dataset", "_fingerprint", "tells a hub dataset's contents for the cache"),
    # PEFT
    ("peft.mapping", "PEFT_TYPE_TO_TUNER_MAPPING", "the methods, and where each adapts by default"),
    ("peft.tuners.tuners_utils", "_maybe_include_all_linear_layers", "what all-linear meant to a saved adapter"),
    ("peft.utils", "TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING", "where IA3 adapts by default"),
    # Accelerate
    ("accelerate.utils.memory", "should_reduce_batch_size", "its words for memory that ran out"),
    ("accelerate.PartialState", "device", "is given its index in a single process"),
    # DeepSpeed
    ("deepspeed.utils.mixed_precision_linkage", "_hp_mapping", "a parameter's share of the float32 groups, ZeRO-1/2"),
    ("deepspeed.utils.tensor_fragment", "hp_fragment_address", "where that share lies"),
    ("deepspeed.utils.tensor_fragment", "lp_fragment_address", "what of the parameter it is"),
    ("deepspeed.utils.tensor_fragment", "param_group_index", "in which group it is"),
    (STAGE_1_2, "single_partition_of_fp32_groups", "the float32 values of ZeRO-1/2"),
    (STAGE_1_2, "update_lp_params", "brings parameters in line with them"),
    (STAGE_1_2, "averaged_gradients", "a step is discarded by gradients that are not finite"),
    (STAGE_1_2, "norm_for_param_grads", "the same where it offloads"),
    (STAGE_1_2, "torch_autocast_gradscaler", "its own scaler clips before it unscales"),
    (STAGE_3, "fp32_partitioned_groups_flat", "the float32 values of ZeRO-3"),
    (STAGE_3, "fp16_partitioned_groups_flat", "what is gathered from"),
    (STAGE_3, "grad_position", "where a parameter's share lies in them"),
    (STAGE_3, "get_param_id", "its key there"),
    (STAGE_3, "_unflatten_partitioned_parameters", "brings parameters in line with them"),
    (STAGE_3, "averaged_gradients", "as in ZeRO-1/2"),
    (STAGE_3, "persistent_parameters", "would be gathered one by one"),
    (STAGE_3, "parameter_offload", "what gathers and releases"),
    (OFFLOAD, "_max_available_parameters_in_numel", "how much may stay gathered"),
    (OFFLOAD, "param_numel_persistence_threshold", "what is small enough to stay gathered"),
    (OFFLOAD, "persistent_parameters", "what stays gathered"),
    (OFFLOAD, "partition_all_parameters", "leaves frozen weights gathered between steps"),
    (OFFLOAD, "get_param_coordinator", "releases all others"),
    (OFFLOAD, "_post_backward_module_hook", "a node of the graph that changes the order of sums"),
    ("deepspeed.runtime.zero.partitioned_param_coordinator", "release_and_reset_all", "releases all others"),
    (STAGE_1_2, "override_loss_scale", "one loss scale in every strategy"),
    (STAGE_3, "override_loss_scale", "the same"),
    (PARTITIONED, "ds_id", "whether ZeRO-3 has partitioned a parameter"),
    (PARTITIONED, "ds_numel", "its elements before that"),
    (PARTITIONED, "ds_shape", "its shape before that"),
    (PARTITIONED, "ds_tensor", "this rank's share"),
    (PARTITIONED, "ds_persist", "whether it stays gathered"),
    (PARTITIONED, "ds_external_parameters", "what a module uses of others'"),
]
OF_PYTHON = {"_exit", "_replace"}


def find(where):
    """Import as much of a dotted path as can be imported, and get the rest."""
    parts = where.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for name in parts[count:]:
            found = getattr(found, name)
        return found
    raise ModuleNotFoundError(where)


def is_there(where, name):
    """Whether an object has the name, or its source uses it: of an instance's attributes nothing else tells."""
    try:
        owner = find(where)
    except (ModuleNotFoundError, AttributeError):
        return False
    try:
        return hasattr(owner, name) or re.search(rf"\b{name}\b", inspect.getsource(owner)) is not None
    except (TypeError, OSError):  # of C++
        return False


def moved(where, name, why):
    """Say what is gone; empty where it is there."""
    package = where.split(".")[0]
    return "" if is_there(where, name) else f"{package} {version(package)} has no {where}.{name} ({why})"


def version(package):
    return importlib.import_module(package).__version__


@pytest.mark.parametrize(("where", "name", "why"), RELIED_ON, ids=[f"{w.split('.')[0]}-{n}" for w, n, _ in RELIED_ON])
def test_a_private_name_that_is_relied_on_is_there(where, name, why):
    assert moved(where, name, why) == ""


def test_one_that_moves_is_named_in_a_line():
    told = moved("torch.nn.Module", "_no_such_name", "for this test")
    assert re.fullmatch(r"torch 2\.\S+ has no torch\.nn\.Module\._no_such_name \(for this test\)", told)
    assert moved("torch.nn.NoSuchModule", "_buffers", "x").startswith("torch ")


def asked_for(node):
    """Return the names that a node of the syntax tree asks of something else than self."""
    if isinstance(node, ast.Attribute):
        return [] if is_own(node) else [node.attr]
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr"):
        return [str(getattr(node.args[1], "value", ""))]
    if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("onecurve"):
        return [name.name for name in node.names]
    return []


def defined_by(node):
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return [node.id]
    return [node.attr] if isinstance(node, ast.Attribute) and is_own(node) and isinstance(node.ctx, ast.Store) else []


def is_own(attribute):
    return isinstance(attribute.value, ast.Name) and attribute.value.id in ("self", "cls")


def test_every_private_name_that_the_code_asks_for_is_listed():
    nodes = [n for path in SOURCES.rglob("*.py") for n in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    asked, defined = ({name for node in nodes for name in of(node)} for of in (asked_for, defined_by))
    asked = {name for name in asked if re.match(r"_(?!_)", name)}
    assert {"_buffers", "_hp_mapping", "_BatchNorm", "_schema"} <= asked
    assert asked - defined - OF_PYTHON - {name for _, name, _ in RELIED_ON} == set()


def test_lower_bounds_are_versions_that_were_run():
    """Where `constraints.txt` pins one for every Python; what has left Python 3.10 behind is older there."""
    lines = (SOURCES.parent / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0]: line.partition("==")[2] for line in lines if "==" in line and ";" not in line}
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11")
    project = tomllib.loads((SOURCES.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = map(Requirement, [*project["dependencies"], *extras["quant"], *extras["fp8"], *extras["tensorboard"]])
    bounds = {r.name: Version(s.version) for r in asked for s in r.specifier if s.operator == ">="}
    wrong = {n: str(b) for n, b in bounds.items() if n in pinned and b.release[:2] != Version(pinned[n]).release[:2]}
    assert wrong == {} and {"torch", "deepspeed", "accelerate", "peft"} <= bounds.keys() & pinned.keys()
