"""Ask a trained model, or several together: labels, numbers, entities or text for rows, lines of input, or a text."""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onecurve.errors import ConfigError

if TYPE_CHECKING:
    from onecurve.data.rows import Broken, Located
    from onecurve.model.trained import Trained


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("model", help="a run's directory, its model/ folder, or a PEFT adapter")
    parser.add_argument(
        "texts",
        nargs="*",
        metavar="TEXT",
        help="what to ask about; folders of further models, of which the mean is taken, come first",
    )
    parser.add_argument("--text", action="append", default=[], help="a text to ask about; may be given several times")
    parser.add_argument(
        "--input",
        metavar="FILE",
        help="rows, in any format that training reads; -: standard input (JSONL, or lines)",
    )
    parser.add_argument("--output", metavar="FILE", help="where to write; standard output when absent")
    parser.add_argument("--batch_size", type=int, default=16, help="rows of one forward pass")
    parser.add_argument("--json", action="store_true", help="write one JSON object a row")
    parser.add_argument(
        "--keep",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="with --json: columns of the input that each object repeats under `kept`, such as a date",
    )
    parser.add_argument("--max_new_tokens", type=int, default=64, help="how far a language model writes")
    parser.add_argument("--task", metavar="NAME", help="the task, where the folder has no task.json")
    parser.add_argument("--trust_remote_code", action="store_true", help="run Python code that comes with the model")


def run(arguments: argparse.Namespace) -> int:
    """Write one line a row; return 1 where a row could not be used."""
    from onecurve.model.task_file import is_model_folder

    further = [*takewhile(lambda text: any(map(is_model_folder, _places(text))), arguments.texts)]
    names, texts = [arguments.model, *further], [*arguments.texts[len(further) :], *arguments.text]
    if texts and arguments.input:
        raise ConfigError("texts and --input were both given.", fix="Give one of them.")
    if arguments.batch_size < 1:
        raise ConfigError(f"must be at least 1; got {arguments.batch_size}.", where="--batch_size")
    if arguments.max_new_tokens < 1:
        raise ConfigError(f"must be at least 1; got {arguments.max_new_tokens}.", where="--max_new_tokens")
    if arguments.keep and (texts or not arguments.json):
        raise ConfigError(
            "repeats columns of rows in JSON objects.", where="--keep", fix="Give the rows with --input, and --json."
        )
    _check_output(arguments.output, arguments.input)
    from onecurve.machine.log_noise import hush_transformers

    hush_transformers()
    from onecurve.model.trained import load_trained
    from onecurve.prediction.answers import check_askable, plain
    from onecurve.prediction.ensemble import answer_together, check_together

    members = [load_trained(Path(name), arguments.task, arguments.trust_remote_code) for name in names]
    check_askable((trained := members[0]).task, arguments.model)
    if further:
        check_together(members, names)
    asked: list[tuple[dict[str, Any], Any]] = []
    rows = _noted(_rows(trained, texts, arguments), asked)
    errors = 0
    with open(arguments.output, "w", encoding="utf-8") if arguments.output else nullcontext(sys.stdout) as out:
        for number, told in enumerate(answer_together(members, rows, arguments.batch_size, arguments.max_new_tokens)):
            errors += "error" in told
            named, text = asked[number]
            line = json.dumps(named | told, ensure_ascii=False, default=str) if arguments.json else plain(told, text)
            print(line, file=out, flush=True)
    if errors:
        print(f"onecurve predict: {errors} of {len(asked)} rows could not be used.", file=sys.stderr)  # noqa: T201
    return int(errors > 0)


def _places(text: str) -> list[Path]:
    return [Path(text), Path(text, "model")]  # a model's folder, or its run's


def _check_output(output: str | None, given: str | None) -> None:
    if output is None:
        return
    path = Path(output)
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigError(f"{output!r} is a folder, or is to lie in one that is not there.", where="--output")
    if given not in (None, "-") and path.exists() and Path(given).exists() and path.samefile(given):
        raise ConfigError(f"{output!r} is what --input reads.", where="--output", fix="Name another file.")


def _rows(trained: "Trained", texts: list[str], arguments: argparse.Namespace) -> "Iterator[Located | Broken]":
    from onecurve.prediction.rows import rows_of_file, rows_of_lines, rows_of_texts

    path, keep = arguments.input, arguments.keep
    if texts:
        return rows_of_texts(trained.task, texts)
    return rows_of_file(trained, path, keep) if path not in (None, "-") else rows_of_lines(trained, sys.stdin, keep)


def _noted(rows: "Iterator[Located | Broken]", asked: list[tuple[dict[str, Any], Any]]) -> "Iterator[Located | Broken]":
    """Pass rows on, and note of each what its answer is told by: `id`, else its number; and what the row begins with.

    Columns to keep stand beside the `id`, under `kept`.
    """
    for number, found in enumerate(rows):
        row, kept = getattr(found, "row", {}), dict(getattr(found, "kept", {}))
        name = row.get("id")  # in CoNLL-U, a column of its words
        first = next((value for key, value in row.items() if key != "id"), found.place)
        named = {"id": name if isinstance(name, str | int) else number}
        asked.append((named | ({"kept": kept} if kept else {}), first))
        yield found
