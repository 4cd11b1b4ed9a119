"""List, verify, show, compare, convert and average checkpoints."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from onecurve.errors import ConfigError
from onecurve.machine.latest import follow
from onecurve.machine.log_noise import hush_transformers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    action = actions.add_parser("list", help="list checkpoints, and leftovers of crashes")
    action.add_argument("path", help="a run's folder, or its checkpoints/")
    action = actions.add_parser("verify", help="read every byte; exit code 1 when something is wrong")
    action.add_argument("path", help="a run's folder, its checkpoints/, or one checkpoint")
    action = actions.add_parser("show", help="show the content of one checkpoint")
    action.add_argument("path", help="a checkpoint, or a run's folder for its newest one")
    action = actions.add_parser("diff", help="where two checkpoints differ; exit code 1 when they do")
    action.add_argument("a", help="a checkpoint, or a run's folder for its newest one")
    action.add_argument("b", help="the other")
    _add_convert(actions.add_parser("convert", help="write a plain model folder from a checkpoint"))
    action = actions.add_parser("average", help="write the mean of several runs' models, or of their adapters")
    action.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or a model folder")
    action.add_argument("--output", required=True, help="the folder to write")
    action.add_argument("--weights", help="examples: by how many each run was trained on; or numbers: 1,2,...")
    action.add_argument("--task", metavar="NAME", help="the task, where the folders have no task.json")
    action.add_argument("--trust_remote_code", action="store_true", help="run Python code that comes with the model")


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    actions = {"list": _list, "verify": _verify, "show": _show, "diff": _diff, "convert": _convert, "average": _average}
    return actions[arguments.action](arguments)


def _add_convert(action: argparse.ArgumentParser) -> None:
    action.add_argument(
        "source",
        help="a checkpoint; a run's folder for its newest one; or a folder saved by Accelerate's save_state, "
        "DeepSpeed, the Trainer or PEFT",
    )
    action.add_argument("target", help="the folder to write")
    action.add_argument("--which", choices=["step", "best"], help="whose weights: the step's (default), or the best's")
    action.add_argument("--merge", action="store_true", help="merge an adapter into its base, in float32")
    action.add_argument(
        "--config",
        help="model folder or hub name for the config and tokenizer that the source lacks; for our own checkpoint "
        "outside its run, the run's config.yaml",
    )
    action.add_argument("--labels", nargs="+", default=[], help="label names in the order of their ids, where unnamed")
    action.add_argument("--trust_remote_code", action="store_true", help="run Python code that comes with the model")


def _list(arguments: argparse.Namespace) -> int:
    from onecurve.checkpoint import read_manifest
    from onecurve.errors import UserError

    root = _root(Path(arguments.path))
    latest = (root / "latest").read_text(encoding="utf-8").strip() if (root / "latest").is_file() else ""
    for entry in sorted(entry for entry in root.iterdir() if entry.is_dir()):
        if entry not in _checkpoints(root):
            print(f"{entry.name}  no checkpoint: left over or set aside")  # noqa: T201
            continue
        try:
            manifest = read_manifest(entry)
        except UserError as error:
            print(f"{entry.name}  bad: {error}")  # noqa: T201
            continue
        told = f"{manifest.num_bytes / 1e6:,.1f} MB  {len(manifest.tensors)} tensors  {manifest.world_size} ranks"
        print(f"{entry.name}  {told}{'  latest' if entry.name == latest else ''}")  # noqa: T201
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from onecurve.checkpoint import verify

    path = follow(Path(arguments.path))
    bad = False
    for folder in [path] if _is_one(path) else _checkpoints(_root(path)):
        problems = verify(folder)
        bad |= bool(problems)
        print(f"{folder.name}: {'; '.join(problems) or 'good'}")  # noqa: T201
    return int(bad)


def _show(arguments: argparse.Namespace) -> int:
    from onecurve.checkpoint import read_manifest, read_state

    folder = _one(Path(arguments.path))
    manifest = read_manifest(folder)
    told = f"step {manifest.step}, {manifest.num_bytes / 1e6:,.1f} MB, written by {manifest.world_size} ranks"
    print(f"{folder}: {told}{f', run {manifest.run_id}' if manifest.run_id else ''}")  # noqa: T201
    for name, stored in manifest.tensors.items():
        shape = " x ".join(map(str, stored.shape)) or "scalar"
        print(f"  {name}  {stored.dtype} {shape}  in {len(stored.held)} windows")  # noqa: T201
    print(json.dumps(read_state(folder), indent=1))  # noqa: T201
    return 0


def _diff(arguments: argparse.Namespace) -> int:
    a, b = _one(Path(arguments.a)), _one(Path(arguments.b))
    lines = list(_differences(a, b))
    print("\n".join(lines) or "no difference")  # noqa: T201
    return int(bool(lines))


def _differences(a: Path, b: Path) -> Iterator[str]:
    from onecurve.checkpoint import read_state
    from onecurve.checkpoint.difference import compare_states, compare_tensors

    for found in compare_tensors(a, b):
        if isinstance(found, str):
            yield found
        else:
            told = f"by {found.largest:.3g} at most, {found.relative:.2g} of the largest value"
            yield f"{found.tensor}: {found.num_different} elements, {told}"
    yield from (f"state.json {line}" for line in compare_states(read_state(a), read_state(b)))


def _convert(arguments: argparse.Namespace) -> int:
    source, target = _source(follow(Path(arguments.source))), Path(arguments.target)
    ours = _is_ours(source)
    _check_convert(arguments, source, ours)
    hush_transformers()
    from onecurve.conversion import Wanted, check_target, convert_adapter, convert_checkpoint, convert_weights

    check_target(target)
    wanted = Wanted(
        target,
        arguments.config,
        arguments.labels,
        arguments.which == "best",
        arguments.merge,
        arguments.trust_remote_code,
    )
    if ours:
        folder = _one(source)
        print(f"{target}: {folder}, the weights of step {convert_checkpoint(folder, wanted)}")  # noqa: T201
    else:
        convert = convert_adapter if arguments.merge else convert_weights
        print(f"{target}: {convert(source, wanted)} from {source}")  # noqa: T201
    return 0


def _average(arguments: argparse.Namespace) -> int:
    hush_transformers()
    from tempfile import TemporaryDirectory

    from onecurve.conversion import check_target
    from onecurve.conversion.averaging import Part, averaged_card, check_parts, weights_of, write_mean
    from onecurve.export.model_folder import save_alone
    from onecurve.model.task_file import TaskFile
    from onecurve.model.trained import load_trained

    target, parts = Path(arguments.output), [Part.read(name) for name in arguments.runs]
    check_target(target)
    unchecked, weights = check_parts(parts), weights_of(arguments.weights, parts)
    with TemporaryDirectory() as elsewhere:
        folder = Path(elsewhere, "model")
        how = write_mean(parts, weights, folder)
        mean = load_trained(folder, arguments.task, arguments.trust_remote_code)
        if hasattr(mean.model, "peft_config"):
            mean.model.set_adapter("default")  # loaded to be asked; what is saved is what requires gradients
        card = averaged_card(parts, weights, how)
        save_alone(target, mean.model, mean.processor, card, TaskFile.read(folder))
    shares = ", ".join(f"{weight:.4g} x {part.name}" for weight, part in zip(weights, parts, strict=True))
    print(f"{target}: {how}; {shares}")  # noqa: T201
    if unchecked:
        print(unchecked)  # noqa: T201
    return 0


def _source(path: Path) -> Path:
    """Take a run without checkpoints, which is the default, for its model/."""
    has_run = (path / "config.yaml").is_file() and (path / "model").is_dir()
    return path / "model" if has_run and not any((path / "checkpoints").glob("step-*")) else path


def _check_convert(arguments: argparse.Namespace, source: Path, ours: bool) -> None:
    if not source.is_dir():
        raise ConfigError(f"no such folder: {str(source)!r}.")
    adapter = (source / "adapter_config.json").is_file()
    if not ours and (source / "status.json").is_file():
        raise ConfigError(f"the run {str(source)!r} has no checkpoint and no model/ yet: it has saved nothing.")
    if adapter and not arguments.merge:
        raise ConfigError(
            f"{str(source)!r} is a PEFT adapter, which is a plain folder already.",
            fix="A run trains it further with model.path and peft.method. As a whole model: --merge.",
        )
    if arguments.merge and not adapter and not ours:
        raise ConfigError(f"{str(source)!r} is not an adapter: there is nothing to merge.", fix="Leave out --merge.")
    if ours and arguments.labels:
        raise ConfigError("An onecurve checkpoint has its own labels.", fix="Leave out --labels.")
    if arguments.which and not ours:
        raise ConfigError(f"{str(source)!r} is not an onecurve checkpoint, so it has no best weights.", where="--which")


def _is_ours(path: Path) -> bool:
    return _is_one(path) or (path / "checkpoints").is_dir() or any(path.glob("step-*"))


def _root(path: Path) -> Path:
    root = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if not any(root.glob("step-*")):
        raise ConfigError(f"{str(path)!r} has no checkpoints.")
    return root


def _checkpoints(root: Path) -> list[Path]:
    from onecurve.checkpoint.folders import folder_name, steps

    return [root / folder_name(step) for step in steps(root)]


def _one(path: Path) -> Path:
    path = follow(path)
    if _is_one(path):
        return path
    if checkpoints := _checkpoints(_root(path)):
        return checkpoints[-1]
    raise ConfigError(f"{str(path)!r} has no complete checkpoint.")


def _is_one(path: Path) -> bool:
    from onecurve.checkpoint.folders import MANIFEST, step_of

    return path.is_dir() and (step_of(path.name) is not None or (path / MANIFEST).is_file())
