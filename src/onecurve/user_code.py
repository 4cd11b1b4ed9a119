"""The user's own code, outside this package: found, imported and hashed."""

import ast
import hashlib
import os
import sys
import traceback
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from onecurve.errors import ConfigError

FORM = "my_file.py:NAME or package.module:NAME"


def is_external(name: str) -> bool:
    """Whether a name in a recipe refers to the user's own code."""
    return ":" in name or name.endswith(".py")


def locate(name: str, folder: Path) -> str:
    """Return a name that can be loaded from the working directory.

    Args:
        name: As the recipe has it.
        folder: The recipe's: files and modules are looked for there, then in the working directory.
    """
    place, colon, attribute = name.rpartition(":")
    if not is_external(name):
        return name
    if not place.endswith(".py"):
        _search(folder)
        return name
    path = folder / place
    if not path.is_file():
        return name
    path = Path(os.path.abspath(path))
    return f"{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}{colon}{attribute}"


def load(name: str, where: str) -> Any:
    """Import what `my_file.py:NAME` or `package.module:NAME` names.

    Args:
        name: A file relative to the working directory, or a module that is installed or lies in it.
        where: The setting that names it.

    Raises:
        ConfigError: No such file or module, one that cannot be imported, or nothing of that name in it.
    """
    place, colon, attribute = name.rpartition(":")
    if not (place and colon and attribute.isidentifier()):
        raise ConfigError(f"{name!r} names no class.", where=where, fix=f"Write {FORM}.")
    module = _import_file(Path(place), where) if place.endswith(".py") else _import_module(place, where)
    if not hasattr(module, attribute):
        raise ConfigError(f"there is no {attribute!r} in {place}.", where=where)
    return getattr(module, attribute)


@cache
def source_hash(kind: type) -> str:
    """Return a hash of a class's source code; empty for classes of this package.

    It covers the class's module and the modules beside it that it imports, directly or not, also inside functions.
    Installed packages are not included, except the one that contains the module.
    """
    module = sys.modules[kind.__module__]
    if _top(kind.__module__) == _top(__name__):
        return ""
    assert module.__file__, kind
    file = Path(module.__file__)
    root = file.parents[len(module.__package__.split(".")) if module.__package__ else 0]
    first = ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
    installed = {"site-packages", "dist-packages"} & set(root.parts)
    digest = hashlib.blake2b(digest_size=16)
    for name, path in sorted(_reachable(root, first, _top(first) if installed else "").items()):
        content = path.read_bytes()
        digest.update(f"{name} {len(content)} ".encode() + content)
    return digest.hexdigest()


def _reachable(root: Path, first: str, only: str) -> dict[str, Path]:
    """Return the modules under a folder that one of them imports, itself first; of one package where `only` says so."""
    found: dict[str, Path] = {}
    waiting = [first]
    while waiting:
        name = waiting.pop()
        path = root.joinpath(*name.split("."))
        file = next((f for f in (path.with_suffix(".py"), path / "__init__.py") if f.is_file()), None)
        if file is None or name in found or _top(name) == _top(__name__) or (only and _top(name) != only):
            continue
        found[name] = file
        package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
        waiting += _imported(file, package)
    return found


def _imported(file: Path, package: list[str]) -> Iterator[str]:
    """Yield every module that a file may import, with the packages above it."""
    for node in ast.walk(ast.parse(file.read_bytes(), str(file))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            names = [base, *(f"{base}.{alias.name}".lstrip(".") for alias in node.names)]
        for name in filter(None, names):
            parts = name.split(".")
            yield from (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))


def _top(name: str) -> str:
    return name.partition(".")[0]


def _search(folder: Path) -> None:
    """Have modules found in a folder, after whatever is installed: a file of the user's must not stand in for that."""
    if (path := os.path.abspath(folder)) not in sys.path:
        sys.path.append(path)


def _import_file(file: Path, where: str) -> ModuleType:
    if not file.is_file():
        raise ConfigError(
            f"there is no file {str(file)!r}.", where=where, fix=f"Paths start at the recipe's folder or {Path.cwd()}."
        )
    _search(file.parent)
    # A name of its own: the file may be called like a package that something else imports
    name = f"user_code_{file.stem}"
    spec = spec_from_file_location(name, os.path.abspath(file))
    assert spec is not None and spec.loader is not None, file
    if getattr(sys.modules.get(name), "__file__", None) == spec.origin:
        return sys.modules[name]
    module = sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # noqa: BLE001  the user's code may raise anything
        del sys.modules[name]
        raise ConfigError(_told(error, str(file)), where=where) from None
    return module


def _import_module(name: str, where: str) -> ModuleType:
    _search(Path())
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"there is no module {error.name!r}.", where=where, fix=f"It is neither installed nor in {Path.cwd()}."
            ) from None
        raise ConfigError(_told(error, name), where=where) from None
    except (Exception, SystemExit) as error:  # noqa: BLE001  the user's code may raise anything
        raise ConfigError(_told(error, name), where=where) from None


def _told(error: BaseException, what: str) -> str:
    """Explain why code cannot be imported, with the line of the user's code that fails."""
    if isinstance(error, SyntaxError):
        place, why = f"{error.filename}, line {error.lineno}", f"SyntaxError: {error.msg}"
    else:
        frames = traceback.extract_tb(error.__traceback__)
        others = ("<", __file__, os.path.dirname(os.__file__))  # installed packages lie below the standard library
        last = ([frame for frame in frames if not frame.filename.startswith(others)] or frames)[-1]
        place, why = f"{last.filename}, line {last.lineno}", f"{type(error).__name__}: {error}"
    return f"{what} cannot be imported: {place}: {why}."
