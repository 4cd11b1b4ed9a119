"""PEFT methods and options that this training loop does not support, with the reasons."""

from typing import Any

_EVERY_STEP = "it must be called in every training step, which onecurve does not do"
_PREPARED = "it needs a pass over data or a preparation of the model before training"
_OWN_LOSS = "it adds terms to the loss, which onecurve does not compute"

METHODS = {
    "adalora": f"{_EVERY_STEP} (its ranks are re-allocated there), and its orthogonality term joins the loss",
    "cartridge": f"{_PREPARED} (a context's key-value cache); prefix_tuning trains the same parameters from scratch",
    "cpt": _OWN_LOSS,
    "multitask_prompt_tuning": "it needs a task id in every batch",
    "poly": "it needs a task id in every batch",
    "shadow": f"{_OWN_LOSS} (some of its weights get no gradient from the task's loss)",
    "xlora": "it mixes adapters that were trained before",
}
"""PEFT's methods that are refused, and why."""

_FIELDS = {
    "arrow_config": "it routes between adapters that were trained before",
    "corda_config": _PREPARED,
    "eva_config": _PREPARED,
    "kasa_config": _OWN_LOSS,
    "loftq_config": _PREPARED,
    "lora_ga_config": _PREPARED,
    "megatron_config": "the models here are transformers' own, not Megatron's",
    "megatron_core": "the models here are transformers' own, not Megatron's",
    "monteclora_config": _OWN_LOSS,
    "runtime_config": "it has no effect on training",
    "use_asa": _EVERY_STEP,
    "use_bdlora": "its value is an object that YAML cannot express",
}
_INITS = {
    "corda": _PREPARED,
    "eva": _PREPARED,
    "loftq": _PREPARED,
    "lora_ga": _PREPARED,
    # Measured: reloading draws the randomised SVD anew, so the base's residual is another one (logits off by 9e-2).
    "pissa_niter": "its random decomposition of the base is drawn anew on loading, so the saved adapter fits no base",
}


def refusal(field: str, value: Any) -> str | None:
    """Say why a method's field cannot have this value, or None where it can.

    PEFT accepts `init_lora_weights: eva` and `lora_ga` without their data and then starts from its plain
    initialisation, without a word; that is why they are refused here and not left to PEFT.

    Args:
        field: PEFT's name of the field.
        value: What the recipe says.
    """
    if not value:
        return None
    if field == "init_lora_weights" and isinstance(value, str):
        return next((reason for name, reason in _INITS.items() if value.lower().startswith(name)), None)
    return _FIELDS.get(field)
