"""Label or continue texts with a trained model."""

import argparse
import sys
from pathlib import Path
from typing import Any

from onecurve.errors import ConfigError
from onecurve.machine.log_noise import hush_transformers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("model", help="a run's model/ folder")
    parser.add_argument(
        "texts", nargs="*", metavar="TEXT", help="what to label or continue; lines of stdin when absent"
    )
    parser.add_argument("--max_new_tokens", type=int, default=64, help="how far a language model continues")


def run(arguments: argparse.Namespace) -> int:
    """Print one line a text: label and probability, or the continuation."""
    folder = Path(arguments.model)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{str(folder)!r} is no model folder: it has no config.json.")
    hush_transformers()
    texts = arguments.texts or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    from transformers import AutoConfig, AutoTokenizer

    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    classifies = any("SequenceClassification" in name for name in config.architectures or [])
    model = load_trained(folder, config, classifies).eval()
    for text in texts:
        answer = _label(model, tokenizer, text) if classifies else _continue(model, tokenizer, text, arguments)
        print(answer)  # noqa: T201
    return 0


def load_trained(folder: Path, config: Any, classifies: bool) -> Any:
    """Load a full model, or an adapter on its base, on the CPU in float32."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    auto = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
    if not (folder / "adapter_config.json").is_file():
        return auto.from_pretrained(folder, dtype="float32")
    from peft import PeftConfig, PeftModel

    import onecurve.adapters.bottleneck  # noqa: F401  registers the bottleneck adapter with PEFT

    base = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    return PeftModel.from_pretrained(auto.from_pretrained(base, config=config, dtype="float32"), folder)


def _label(model: Any, tokenizer: Any, text: str) -> str:
    import torch

    with torch.no_grad():
        logits = model(**tokenizer(text, truncation=True, return_tensors="pt")).logits[0]
    if model.config.problem_type == "regression":
        return f"{logits.item():.4f}\t{text}"
    if model.config.problem_type == "multi_label_classification":
        scores = logits.sigmoid()
        names = [f"{model.config.id2label[i]} {p:.3f}" for i, p in enumerate(scores.tolist()) if p > 0.5]
        return f"{', '.join(names) or '(none)'}\t{text}"
    best = int(logits.argmax())
    return f"{model.config.id2label[best]} {logits.softmax(-1)[best]:.3f}\t{text}"


def _continue(model: Any, tokenizer: Any, text: str, arguments: argparse.Namespace) -> str:
    if tokenizer.chat_template:
        turn = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(text, add_special_tokens=not tokenizer.chat_template, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=arguments.max_new_tokens, do_sample=False)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
