"""Load adapters' folders as somebody does who never heard of onecurve; run as a script: the folders' parent, readers.

Each folder has logits.pt (ids, and the logits that were trained). Prints JSON: folder -> reader -> the largest
difference of a logit, or the error; with what else readers find there, and what the card's own code computes.
"""

import json
import re
import sys
from pathlib import Path

import torch

KINDS = {
    "SEQ_CLS": ("ModelForSequenceClassification", "text-classification"),
    "CAUSAL_LM": ("ModelForCausalLM", "text-generation"),
}


def read(folder: Path, wanted: list[str]) -> dict[str, object]:
    import peft
    import transformers

    task = json.loads((folder / "adapter_config.json").read_text())["task_type"]
    name, pipeline = KINDS[task]
    auto, autopeft = getattr(transformers, f"Auto{name}"), getattr(peft, f"AutoPeft{name}")
    readers = {
        "peft": lambda: peft.PeftModel.from_pretrained(auto.from_pretrained(folder / "base"), folder),
        "autopeft": lambda: autopeft.from_pretrained(folder),
        "autopeft with labels": lambda: autopeft.from_pretrained(folder, id2label=labels(folder)),
        "transformers": lambda: auto.from_pretrained(folder),
        "pipeline": lambda: transformers.pipeline(pipeline, str(folder)).model,
    }
    found: dict[str, object] = {name: attempt(load, folder) for name, load in readers.items() if name in wanted}
    if "card" in wanted:
        found["card"] = [attempt(lambda code=code: run(code), folder) for code in snippets(folder)]
    return found


def labels(folder: Path) -> dict[int, str]:
    told = json.loads((folder / "config.json").read_text()).get("id2label", {})
    return {int(number): name for number, name in told.items()}


def snippets(folder: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)


def run(code: str):
    names: dict = {}
    exec(code, names)
    return names["model"] if "model" in names else names["pipe"].model


def attempt(load, folder: Path) -> object:
    """Load a model; return the difference of its logits, its label names and what ends its generation, or the error."""
    ids, expected = torch.load(folder / "logits.pt")
    try:
        model = load().eval()
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    except (AttributeError, KeyError, ValueError, RuntimeError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    generation = getattr(model, "generation_config", None)
    names = list(model.config.id2label.values())
    return [float((logits - expected).abs().max()), names, generation and generation.eos_token_id]


def main(parent: Path, *wanted: str) -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    folders = [path.parent for path in parent.rglob("logits.pt")]
    found = {}
    for folder in sorted(folders, key=lambda folder: (folder.name == "bottleneck", folder)):
        assert "onecurve" not in sys.modules
        found[str(folder.relative_to(parent))] = read(folder, list(wanted))
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
