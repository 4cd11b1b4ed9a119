"""How `sft` finds the answers under real chat templates: a table, a row for each file of a folder.

python -m benchmarks.templates FOLDER    # FOLDER holds NAME.jinja files, or folders with a tokenizer

mask, diff, sentinel: how the answers were found (docs/conversations.md); in brackets, the examples that a row is made
into where it is more than one; "not written": the template writes no such thing, and the row is refused.
"""

import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from onecurve.content.templates import CannotRender, chat_template
from onecurve.errors import BadRow
from onecurve.tasks.base import IGNORE_INDEX, TALLY, Survey
from onecurve.tasks.sft import SftSettings, Task

SPECIAL = re.compile(
    r"<\|[^|<>\s]+\|?>|<[^|<>\s]+\|>|<｜[^｜<>\s]+｜>|<[a-z]+_of_[a-z]+>|\[\|[a-z]+\|\]|\[/?[A-Z_]{3,}\]"
)
"""What tokenizers hold as one token, as far as a template shows it."""
SYSTEM = {"role": "system", "content": "You answer with one colour."}
ASKED = {"role": "user", "content": "Which colour has the sky?"}
ANSWERED = {"role": "assistant", "content": "A light blue."}
TURNS = [ASKED, ANSWERED, {"role": "user", "content": "And grass?"}, {"role": "assistant", "content": "A deep green."}]
THOUGHT = [{**turn, "content": f"<think>\nI look up.\n</think>\n\n{turn['content']}"} for turn in (ANSWERED, TURNS[3])]
CALL = {"id": "call12345", "type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}
TOOLS = [{"type": "function", "function": {"name": "look", "description": "Looks up.", "parameters": {}}}]
CALLED = [
    ASKED,
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "blue", "tool_call_id": "call12345", "name": "look"},
    ANSWERED,
]
ROWS: dict[str, dict[str, Any]] = {
    "one turn": {"messages": TURNS[:2]},
    "two turns": {"messages": TURNS},
    "system, one turn": {"messages": [SYSTEM, *TURNS[:2]]},
    "system, two turns": {"messages": [SYSTEM, *TURNS]},
    "reasoning": {"messages": [TURNS[0], THOUGHT[0], TURNS[2], THOUGHT[1]]},
    "tools": {"messages": CALLED, "tools": TOOLS},
}
_METHODS = {"generation mask": "mask", "difference": "diff", "sentinel": "sentinel"}


class _Reading:
    """What `sft` asks of a run's reading."""

    def __init__(self, tokenizer: Any) -> None:
        self.processor = self.tokenizer = tokenizer
        self.config, self.max_length = None, 1 << 20


def tokenizer_for(template: str) -> Any:
    """Return a tokenizer of bytes that has the template's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=1 << 20
    )
    tokenizer.add_tokens(sorted(set(SPECIAL.findall(template))), special_tokens=True)
    tokenizer.chat_template = template
    return tokenizer


def examine(tokenizer: Any, row: dict[str, Any]) -> str:
    """Say how the answers of a row were found, in how many examples, and what is wrong with them."""
    task, reading = Task(SftSettings()), _Reading(tokenizer)
    try:
        task.check(row)
        examples = task.encode(row, Survey(), reading, truncate=False)
        prompts = _prompts(row, tokenizer)
    except (BadRow, CannotRender) as error:
        reason = str(error)
        return "not written" if "leaves out" in reason else f"refused: {reason.split(': ')[-1].partition('. ')[0]}"
    tally = sum((Counter(example[TALLY]) for example in examples), Counter[str]())
    methods = sorted({name for phrase in tally for words, name in _METHODS.items() if words in phrase})
    texts = [tokenizer.decode(example["input_ids"]) for example in examples]
    told = ", ".join(methods) + (f" ({len(examples)})" if len(examples) > 1 else "")
    if not all(any(text.startswith(prompt) for text in texts) for prompt in prompts):
        told += " (prompt differs)"
    if not all(_stops(example, tokenizer) for example in examples):
        told += " (no end token)"
    return told


def _prompts(row: dict[str, Any], tokenizer: Any) -> list[str]:
    """Return what the model is given before each answer."""
    places = [place for place, message in enumerate(row["messages"]) if message["role"] == "assistant"]
    template = chat_template(tokenizer)
    return [template.render(row["messages"][:place], row.get("tools"), True) for place in places]


def _stops(example: dict[str, Any], tokenizer: Any) -> bool:
    last = [label for label in example["labels"] if label != IGNORE_INDEX][-1]
    return last in tokenizer.added_tokens_decoder


def end_token(tokenizer: Any) -> str:
    """Return the token that an answer ends with."""
    end = Task(SftSettings()).end_token(tokenizer)
    return "-" if end is None else str(tokenizer.decode([end]))


def main(folder: Path) -> None:
    """Print the table of a folder's templates."""
    from transformers import AutoTokenizer

    found: dict[str, Any] = {path.stem: tokenizer_for(path.read_text("utf-8")) for path in folder.glob("*.jinja")}
    found |= {p.parent.name: AutoTokenizer.from_pretrained(p.parent) for p in folder.glob("*/tokenizer_config.json")}
    columns = ["template", *ROWS, "ends with"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name, tokenizer in sorted(found.items()):
        cells = [name, *(examine(tokenizer, row) for row in ROWS.values()), f"`{end_token(tokenizer)}`"]
        print(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
