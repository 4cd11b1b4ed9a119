"""The `onecurve` command: one file of this folder a subcommand."""

import argparse
import pkgutil
import sys
from importlib import import_module

from onecurve import __version__
from onecurve.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand and return its exit code; a user's mistake is one message and code 2."""
    parser = argparse.ArgumentParser(prog="onecurve", description="One fine-tuning run, one curve.")
    parser.add_argument("--version", action="version", version=f"onecurve {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for module_info in pkgutil.iter_modules(__path__):
        module = import_module(f"{__name__}.{module_info.name}")
        command = commands.add_parser(
            module_info.name, help=module.__doc__, description=module.__doc__, allow_abbrev=False
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    arguments, rest = parser.parse_known_args(argv)
    if arguments.command is None:
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        parser.print_help()
        return 0
    if hasattr(arguments, "overrides"):  # a command that takes a recipe leaves --section.key value to it
        arguments.overrides = rest
    elif hasattr(arguments, "texts") and not any(word.startswith("-") for word in rest):
        arguments.texts += rest  # argparse takes texts behind an option for something else
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return arguments.run(arguments)
    except UserError as error:
        print(f"onecurve {arguments.command}: {error}", file=sys.stderr)  # noqa: T201
        return 2
