"""Label or continue texts with a trained model."""

import argparse
import sys
from datetime import date
from pathlib import Path
from typing import Any

from onecurve.content.conversations import DATE, CannotRender, render
from onecurve.errors import ConfigError
from onecurve.export.adapter_folder import base_of, described_in
from onecurve.machine.log_noise import hush_transformers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("model", help="a run's model/ folder")
    parser.add_argument(
        "texts", nargs="*", metavar="TEXT", help="what to label or continue; lines of stdin when absent"
    )
    parser.add_argument("--max_new_tokens", type=int, default=64, help="how far a language model continues")
    parser.add_argument(
        "--date",
        type=_day,
        default=DATE,
        help=f"what a chat template that prints today's date prints: the run's task.date, by default {DATE}",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print one line a text: label and probability, or the continuation."""
    folder = Path(arguments.model)
    described = described_in(folder)
    if not (described / "config.json").is_file():
        raise ConfigError(f"{str(folder)!r} is no model folder: it has no config.json.")
    hush_transformers()
    texts = arguments.texts or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    from transformers import AutoConfig, AutoTokenizer

    config, tokenizer = AutoConfig.from_pretrained(described), AutoTokenizer.from_pretrained(folder)
    classifies = any("SequenceClassification" in name for name in config.architectures or [])
    model = load_trained(folder, config, classifies).eval()
    for text in texts:
        answer = _label(model, tokenizer, text) if classifies else _continue(model, tokenizer, text, arguments)
        print(answer)  # noqa: T201
    return 0


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a date such as {DATE}; got {text!r}") from None


def load_trained(folder: Path, config: Any, classifies: bool) -> Any:
    """Load a full model, or an adapter on its base, on the CPU in float32."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    auto = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
    if not (folder / "adapter_config.json").is_file():
        return auto.from_pretrained(folder, dtype="float32")
    from peft import PeftConfig, PeftModel

    import onecurve.adapters.bottleneck  # noqa: F401  registers the bottleneck adapter with PEFT
    from onecurve.model.generation import read_generation_config

    adapter = PeftConfig.from_pretrained(str(folder))
    base = auto.from_pretrained(
        base_of(folder, adapter), config=config, dtype="float32", revision=adapter.revision or "main"
    )
    read_generation_config(base, described_in(folder))
    return PeftModel.from_pretrained(base, folder)


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
        try:
            turns = [{"role": "user", "content": text}]
            text = render(turns, tokenizer, arguments.date, add_generation_prompt=True)
        except CannotRender as error:
            raise ConfigError(f"{error}.", where=arguments.model) from None
    inputs = tokenizer(text, add_special_tokens=not tokenizer.chat_template, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=arguments.max_new_tokens, do_sample=False)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
