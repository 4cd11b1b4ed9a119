"""Converse with a trained model on the terminal."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onecurve.errors import BadRow, ConfigError

if TYPE_CHECKING:
    from onecurve.prediction.chat import Chat

_HELP = "/reset begins anew; /exit or ctrl-D ends."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("model", help="a run's model/ folder")
    parser.add_argument("--system", metavar="TEXT", help="a system prompt")
    parser.add_argument("--max_new_tokens", type=int, default=512, help="how far an answer is written")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: always the likeliest token; above: drawn")
    parser.add_argument("--trust_remote_code", action="store_true", help="run Python code that comes with the model")


def run(arguments: argparse.Namespace) -> int:
    """Answer each line of standard input; return 1 where one could not be answered."""
    if arguments.max_new_tokens < 1:
        raise ConfigError(f"must be at least 1; got {arguments.max_new_tokens}.", where="--max_new_tokens")
    if not 0 <= arguments.temperature < float("inf"):
        raise ConfigError(f"must be 0 or more; got {arguments.temperature}.", where="--temperature")
    from onecurve.machine.log_noise import hush_transformers

    hush_transformers()
    from onecurve.prediction.chat import Chat, load_chat_model

    trained = load_chat_model(Path(arguments.model), arguments.trust_remote_code)
    chat = Chat(trained, arguments.system, arguments.max_new_tokens, arguments.temperature)
    return _converse(chat, sys.stdin.isatty())


def _converse(chat: "Chat", is_terminal: bool) -> int:
    from transformers import TextStreamer

    streamer: Any = None
    if is_terminal:
        print(_HELP, file=sys.stderr)  # noqa: T201
        streamer = TextStreamer(chat.trained.tokenizer, skip_prompt=True, skip_special_tokens=True)
    failed = 0
    for line in _lines(is_terminal):
        if line == "/exit":
            break
        if line == "/reset":
            chat.reset()
            continue
        answer = _answer(chat, line, streamer)
        failed += answer is None
        if answer is not None and not is_terminal:
            print(answer, flush=True)  # noqa: T201
    return int(failed > 0 and not is_terminal)


def _answer(chat: "Chat", question: str, streamer: Any) -> str | None:
    """Return an answer; None where there is none, which is told and does not become part of the conversation."""
    try:
        return chat.ask(question, streamer)
    except BadRow as error:
        print(f"onecurve chat: {error}. {_HELP}", file=sys.stderr)  # noqa: T201
    except KeyboardInterrupt:  # it goes on too long
        if streamer is None:
            raise
        print(file=sys.stderr)  # noqa: T201
    return None


def _lines(is_terminal: bool) -> Iterator[str]:
    """Yield what is typed or piped, line by line and without empty ones."""
    if not is_terminal:
        yield from filter(None, map(str.strip, sys.stdin))
        return
    import readline  # noqa: F401  gives `input` a history and editing

    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)  # noqa: T201
            return
        if line:
            yield line
