"""The rules that a machine can hold: sizes, names, the README's tree, launch files, recipes, light imports.

Each guard returns what it found; each has a planted violation that it must find.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from onecurve.adapters import check_adapter
from onecurve.config import read_yaml
from onecurve.errors import UserError
from onecurve.preflight import read

ROOT = Path(__file__).parent.parent
MODULE_LINES, LOOP_LINES = 300, 80
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "handler"}
RECIPES_OWN = {
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
    "bf16",
    "fp16",
    "torch_autocast",
}
HEAVY = {"torch", "transformers", "accelerate", "deepspeed", "peft", "datasets", "evaluate"}
HEAVY |= {"numpy", "pyarrow", "pandas", "scipy", "sklearn", "tokenizers", "huggingface_hub"}
HELPED = [
    "", "chat", "checkpoint", "checkpoint average", "checkpoint convert",
    "data", "data stage", "doctor", "init", "lr", "parity", "predict",
    "train",
]  # fmt: skip


def too_long(root: Path) -> list[str]:
    budgets = dict.fromkeys((root / "src" / "onecurve").rglob("*.py"), MODULE_LINES)
    budgets[root / "train.py"] = LOOP_LINES
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in budgets}
    return [f"{path.relative_to(root)}: {n} lines" for path, n in sorted(lines.items()) if n > budgets[path]]


def badly_named(root: Path) -> list[str]:
    sources = [path.relative_to(root) for path in (root / "src").rglob("*.py")]
    return sorted(str(path) for path in sources if BANNED_NAMES & {*path.parts, path.stem})


def missing_from_tree(root: Path) -> list[str]:
    """Return the entries of the README's tree that are not there; an indented one lies in the folder above it."""
    readme = (root / "README.md").read_text(encoding="utf-8")
    tree = re.search(r"## Where things are\n+```\n(.*?)```", readme, re.DOTALL)
    assert tree, "the README has no tree"
    missing, folder = [], ""
    for line in tree[1].splitlines():
        name = line.split()[0]
        entry = folder + name if line.startswith(" ") else name
        folder = folder if line.startswith(" ") else name
        found = root / entry
        if not (found.is_dir() if name.endswith("/") else found.is_file()):
            missing.append(entry)
    return missing


def broken_launch_files(root: Path) -> list[str]:
    problems = []
    for path in sorted((root / "accelerate_configs").glob("*.yaml")):
        try:
            config = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
            config["distributed_type"]
        except (YAMLError, KeyError, TypeError) as error:
            problems.append(f"{path.name}: {type(error).__name__}")
            continue
        named = config.get("deepspeed_config", {}).get("deepspeed_config_file")
        if named and not (root / named).is_file():
            problems.append(f"{path.name}: no {named}")
    for path in sorted((root / "ds_configs").glob("*.json")):
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            problems.append(f"{path.name}: not JSON")
            continue
        problems += [f"{path.name}: {key}" for key in sorted(RECIPES_OWN & config.keys()) if config[key] != "auto"]
    return problems


def refused_recipes(root: Path) -> list[str]:
    """Return the recipes that train.py would not start, as far as that needs no data and no weights."""
    problems = []
    for path in sorted((root / "recipes").rglob("*.yaml")):
        try:
            checked = read([str(path)])
            check_adapter(checked.recipe.peft)
        except UserError as error:
            problems.append(f"{path.relative_to(root / 'recipes')}: {error}")
    return problems


def readme_recipe(root: Path) -> dict[str, Any]:
    """Return the recipe that the README shows."""
    shown = re.search(r"## A recipe\n.*?```yaml\n(.*?)```", (root / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert shown, "the README shows no recipe"
    return read_yaml(shown[1])


def run_and_list_imports(*arguments: str, path: str = "") -> tuple[int, set[str], str]:
    """Run Python; return its exit code, the top-level names it imported and what it said."""
    command = [sys.executable, "-X", "importtime", *arguments]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment["PYTHONPATH"] = path or str(ROOT / "src")
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    timed = re.compile(r"^import time:\s+\d+ \|\s+\d+ \|\s+([\w.]+)$", re.MULTILINE)
    said = "\n".join(line for line in result.stderr.splitlines() if not line.startswith("import time:"))
    return result.returncode, {name.partition(".")[0] for name in timed.findall(result.stderr)}, said


def plant(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def test_modules_and_the_loop_keep_to_their_budgets():
    assert len(list((ROOT / "src" / "onecurve").rglob("*.py"))) > 20
    assert too_long(ROOT) == []


def test_too_long_a_module_is_found(tmp_path):
    at_the_limit = "x = 1\n" * MODULE_LINES
    files = {"src/onecurve/data/long.py": at_the_limit + "x = 2\n", "src/onecurve/fits.py": at_the_limit}
    plant(tmp_path, {**files, "train.py": "x = 1\n" * (LOOP_LINES + 1)})
    assert too_long(tmp_path) == ["src/onecurve/data/long.py: 301 lines", "train.py: 81 lines"]


def test_modules_are_named_after_what_they_know():
    assert badly_named(ROOT) == []


def test_a_banned_name_is_found(tmp_path):
    plant(tmp_path, {"src/onecurve/helpers/plan.py": "", "src/onecurve/utils.py": "", "src/onecurve/plan.py": ""})
    assert badly_named(tmp_path) == ["src/onecurve/helpers/plan.py", "src/onecurve/utils.py"]


def test_what_the_readme_lists_is_there():
    assert missing_from_tree(ROOT) == []


def test_a_readme_that_lists_what_is_gone_is_found(tmp_path):
    tree = "```\ntrain.py  the loop\nsrc/\n  a.py  one\n  gone/  two\nlost.txt\n```\n"
    plant(tmp_path, {"README.md": f"## Where things are\n\n{tree}", "train.py": "", "src/a.py": ""})
    assert missing_from_tree(tmp_path) == ["src/gone/", "lost.txt"]


def test_launch_files_parse_and_leave_the_recipe_its_own():
    assert broken_launch_files(ROOT) == []
    assert len(list((ROOT / "ds_configs").glob("*.json"))) >= 4


def test_broken_launch_files_are_found(tmp_path):
    deepspeed = "distributed_type: DEEPSPEED\ndeepspeed_config: {{deepspeed_config_file: ds_configs/{}.json}}\n"
    files = {
        "accelerate_configs/good.yaml": deepspeed.format("good"),
        "accelerate_configs/lost.yaml": deepspeed.format("lost"),
        "accelerate_configs/torn.yaml": "distributed_type: [",
        "accelerate_configs/typo.yaml": "distributed_typ: NO\n",
        "ds_configs/good.json": '{"gradient_clipping": "auto", "zero_optimization": {"stage": 1}}',
        "ds_configs/owns.json": '{"gradient_clipping": 1.0, "bf16": {"enabled": true}}',
        "ds_configs/torn.json": "{",
    }
    assert broken_launch_files(plant(tmp_path, files)) == [
        "lost.yaml: no ds_configs/lost.json",
        "torn.yaml: ParserError",
        "typo.yaml: KeyError",
        "owns.json: bf16",
        "owns.json: gradient_clipping",
        "torn.json: not JSON",
    ]


def test_every_recipe_would_start():
    assert refused_recipes(ROOT) == []
    assert len(list((ROOT / "recipes").glob("*.yaml"))) >= 3


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("epochs:", "epoch:", "Unknown setting 'train.epoch'"),
        ("  r: 16", "  rr: 16", "Unknown setting 'peft.rr'"),
        ("schedule: linear", "schedule: lineal", "optim.schedule: must be one of"),
        ("name: text_classification", "name: text_clasification", "task.name: no task"),
        ("best_metric: macro_f1", "best_metric: f1", "eval.best_metric: no metric"),
        ("eval:\n", "tracking:\n  project: p\neval:\n", "tracking.project: has no effect"),
    ],
)
def test_a_recipe_that_would_not_start_is_found(tmp_path, before, after, said):
    good = (ROOT / "recipes" / "quickstart.yaml").read_text(encoding="utf-8")
    assert before in good
    plant(tmp_path, {"recipes/good.yaml": good, "recipes/one/typo.yaml": good.replace(before, after)})
    (found,) = refused_recipes(tmp_path)
    assert found.startswith(f"one/typo.yaml: {said}")


def loud_launches(root: Path) -> list[str]:
    """Return the commands of README and docs under which Accelerate adds its own traceback to a user's mistake."""
    pages = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    lines = [(page, line.strip()) for page in pages for line in page.read_text(encoding="utf-8").splitlines()]
    return [f"{page.name}: {line}" for page, line in lines if re.match(r"accelerate launch (?!--quiet )", line)]


def test_launches_that_are_shown_leave_the_message_to_train_py():
    assert loud_launches(ROOT) == []


def test_a_loud_launch_is_found(tmp_path):
    quiet, loud = "accelerate launch --quiet --config_file x train.py", "accelerate launch train.py recipe.yaml"
    plant(tmp_path, {"README.md": f"```\n{quiet}\n{loud}\n```\n", "docs/a.md": f"  {loud} \\\n"})
    assert loud_launches(tmp_path) == [f"README.md: {loud}", f"a.md: {loud} \\"]


def test_the_readme_shows_the_quickstart_s_recipe():
    quickstart = read_yaml((ROOT / "recipes" / "quickstart.yaml").read_text(encoding="utf-8"))
    shown = readme_recipe(ROOT)
    assert shown["data"].pop("columns") == {"text": "text", "label": "label"}  # their own names: nothing changes
    explained = {"output_dir": shown["output_dir"], "optim": {"name": "adamw", **quickstart["optim"]}}
    assert shown == quickstart | explained


def test_the_recipe_schema_imports_nothing_heavy():
    exit_code, imported, said = run_and_list_imports("-c", "import onecurve.config")
    assert exit_code == 0, said
    assert "pydantic" in imported
    assert not imported & HEAVY


@pytest.mark.parametrize(
    "typo",
    ["--optim.lrr=1", "--task.lables=[a, b]", "--optim.bta1=0.5", "--data.trian=x", "--eval.best_metric=acuracy"],
)
def test_a_typo_is_answered_before_anything_heavy_is_imported(tmp_path, typo):
    recipe = ROOT / "recipes" / "quickstart.yaml"
    exit_code, imported, said = run_and_list_imports("train.py", str(recipe), typo, f"--output_dir={tmp_path / 'run'}")
    assert exit_code == 2, said
    assert not imported & HEAVY
    assert len(said.strip().splitlines()) == 1, said
    assert typo[2:].partition("=")[0] in said, said
    assert not (tmp_path / "run").exists()


def test_help_is_given_before_anything_heavy_is_imported():
    exit_code, imported, said = run_and_list_imports("train.py", "--help")
    assert exit_code == 0, said
    assert not imported & HEAVY


@pytest.mark.parametrize("command", HELPED)
def test_the_commands_help_imports_not_even_the_schema(command):
    exit_code, imported, said = run_and_list_imports("-m", "onecurve", *command.split(), "--help")
    assert exit_code == 0, said
    assert not imported & {*HEAVY, "pydantic"}


def test_every_subcommand_is_asked_for_help():
    folder = ROOT / "src" / "onecurve" / "cli"
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} == {name.split()[0] for name in HELPED[1:]}


@pytest.mark.parametrize("command", ["data stage", "lr", "parity", "train", "train --launch zero2"])
def test_a_typo_is_answered_by_a_command_before_anything_heavy_is_imported(command):
    recipe = ROOT / "recipes" / "quickstart.yaml"
    exit_code, imported, said = run_and_list_imports("-m", "onecurve", *command.split(), str(recipe), "--optim.lrr=1")
    assert exit_code == 2, said
    assert "optim.lrr" in said
    assert not imported & HEAVY


def test_a_heavy_import_is_found(tmp_path):
    plant(tmp_path, {"torch/__init__.py": ""})
    exit_code, imported, said = run_and_list_imports("-c", "import torch", path=str(tmp_path))
    assert exit_code == 0, said
    assert imported & HEAVY == {"torch"}
