"""The wheel and the sdist hold all that a run needs, and work where there is no checkout."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from onecurve import __version__
from onecurve.machine import files
from tests.launching import ROOT, environment

SHIPPED = ("train.py", "accelerate_configs", "ds_configs", "recipes", "quickstart")
OWN_TASK = '''
"""Text classification with a score of its own."""

from onecurve.tasks.text_classification import Task as TextClassification


class Task(TextClassification):
    """Label a text, and count how often that is right."""

    sample = [{"text": f"profit {('rises', 'falls')[i % 2]} {i}", "label": ("up", "down")[i % 2]} for i in range(16)]

    def __init__(self, settings):
        super().__init__(settings)
        self.metric_names = (*self.metric_names, "agreement")

    def metrics(self, pairs, loss, survey):
        return super().metrics(pairs, loss, survey) | {"agreement": sum(p == r for p, r in pairs) / len(pairs)}
'''
TINY = ("--train.epochs", "null", "--train.max_steps", "3")


def run(*words, cwd, **variables):
    settings = environment() | variables
    done = subprocess.run([str(w) for w in words], cwd=cwd, env=settings, capture_output=True, text=True, timeout=540)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what a wheel is made from, so that building leaves nothing in the checkout."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "src", *SHIPPED):
        path = ROOT / name
        leave_out = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(path, folder / name, ignore=leave_out) if path.is_dir() else shutil.copy(path, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    return build(source, tmp_path_factory.mktemp("wheel"))


def build(what, folder):
    words = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, what)
    code, out, err = run(sys.executable, *words, cwd=folder)
    assert code == 0, out + err
    (wheel,) = folder.glob("*.whl")
    return wheel


def shipped(root):
    found = [path for name in SHIPPED for path in (root / name, *(root / name).rglob("*"))]
    return {str(path.relative_to(root)) for path in found if path.is_file() and path.suffix != ".pyc"}


def test_in_a_checkout_its_own_files_are_used():
    assert files.root() == ROOT


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_its_assets_and_nothing_beside_it(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert archive.read("onecurve/assets/train.py") == (ROOT / "train.py").read_bytes()
    assert {name for name in names if name.startswith("onecurve/assets/")} == {
        f"onecurve/assets/{name}" for name in shipped(ROOT)
    }
    assert "onecurve/assets/recipes/tiny-llama/config.json" in names
    assert {name.partition("/")[0] for name in names} == {"onecurve", f"onecurve-{__version__}.dist-info"}


@pytest.mark.slow
def test_the_sdist_makes_the_same_wheel(source, wheel, tmp_path):
    code = f"from setuptools.build_meta import build_sdist; build_sdist({str(tmp_path)!r})"
    assert run(sys.executable, "-c", code, cwd=source)[0] == 0
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        assert not [name for name in archive.getnames() if "/tests" in name]
    (tmp_path / "again").mkdir()
    again = build(sdist, tmp_path / "again")
    first, second = (zipfile.ZipFile(path).namelist() for path in (wheel, again))
    assert set(first) == set(second)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment's bin/ with the wheel and, for all other packages, what this environment has."""
    folder = tmp_path_factory.mktemp("environment")
    assert run(sys.executable, "-m", "venv", "--without-pip", folder / "env", cwd=folder)[0] == 0
    python = folder / "env" / "bin" / "python"
    words = ("-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    code, out, err = run(sys.executable, *words, cwd=folder)
    assert code == 0, out + err
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    shared = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "shared.pth").write_text("\n".join(shared) + "\n")
    code, out, err = run(python, "-c", "import onecurve; print(onecurve.__file__)", cwd=folder)
    assert Path(out.strip()).is_relative_to(site), err
    return python.parent


@pytest.fixture(scope="module")
def project(installed, tmp_path_factory):
    """A folder that `onecurve init` wrote, far from any checkout."""
    folder = tmp_path_factory.mktemp("project")
    code, _, err = run(installed / "onecurve", "init", "begun", cwd=folder)
    assert (code, err) == (0, "")
    return folder / "begun"


def cached(folder):
    return {"XDG_CACHE_HOME": str(folder / "cache"), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@pytest.mark.slow
def test_it_tells_its_version_and_shows_its_help(installed, tmp_path):
    assert run(installed / "onecurve", "--version", cwd=tmp_path) == (0, f"onecurve {__version__}\n", "")
    code, out, err = run(installed / "onecurve", cwd=tmp_path)
    assert (code, err) == (0, "")
    assert {"train", "init", "predict"} <= set(out.split())
    code, out, err = run(installed / "onecurve", "--trian", cwd=tmp_path)
    assert code == 2
    assert "unrecognized arguments: --trian" in err
    assert run(installed / "python", "-c", "import train", cwd=tmp_path)[0] == 1


@pytest.mark.slow
@pytest.mark.distributed
def test_what_init_wrote_trains_and_predicts(installed, project):
    code, out, err = run(installed / "onecurve", "train", "recipe.yaml", *TINY, cwd=project, **cached(project))
    assert (code, err) == (0, "")
    assert "step 3/3" in out
    code, out, err = run(
        installed / "onecurve", "predict", "runs/text_classification/model", "Profit rises", cwd=project
    )
    assert code == 0, err
    assert out.split()[0] in ("positive", "neutral", "negative")


@pytest.mark.slow
@pytest.mark.distributed
def test_zero2_finds_its_deepspeed_config_from_any_folder(installed, project, tmp_path):
    assert not (tmp_path / "ds_configs").exists()
    paths = {"model.path": "tiny-llama", "data.train": "data/train.jsonl", "data.eval": "data/eval.jsonl"}
    here = [word for key, path in paths.items() for word in (f"--{key}", project / path)]
    words = ("train", project / "recipe.yaml", *here, *TINY, "--launch", "zero2")
    code, out, err = run(installed / "onecurve", *words, cwd=tmp_path, **cached(project))
    assert (code, err) == (0, ""), out
    assert "2 rank(s)" in out
    code, _, err = run(
        installed / "onecurve", *words, "--data.train", "nowhere.jsonl", "--output_dir", "x", cwd=tmp_path
    )
    assert (code, err.count("\n")) == (2, 1)


@pytest.mark.slow
def test_python_code_trains_a_task_of_its_own(installed, tmp_path):
    (tmp_path / "mine.py").write_text(OWN_TASK)
    code, _, err = run(installed / "onecurve", "init", "begun", "--task", "mine.py:Task", cwd=tmp_path)
    assert code == 0, err
    (tmp_path / "begun" / "script.py").write_text(
        "import json\nfrom onecurve import predict, train\n"
        "from onecurve.errors import UserError\n"
        "result = train('recipe.yaml', train={'epochs': None, 'max_steps': 3}, eval={'best_metric': 'agreement'})\n"
        "labels = [row['label'] for row in predict(result.output_dir / 'model', ['profit rises', 'profit falls'])]\n"
        "try:\n    train('recipe.yaml', optim={'lrr': 1})\n"
        "except UserError as error:\n    message = str(error)\n"
        "json.dump([result.status['status'], sorted(result.scores), labels, message], open('told.json', 'w'))\n"
    )
    code, out, err = run(installed / "python", "script.py", cwd=tmp_path / "begun", **cached(tmp_path))
    assert (code, err) == (0, ""), out
    status, scores, labels, message = json.loads((tmp_path / "begun" / "told.json").read_text())
    assert status == "done"
    assert "eval/agreement" in scores
    assert set(labels) <= {"up", "down"}
    assert message == "Unknown setting 'optim.lrr' of adamw. Did you mean 'optim.lr'?"
    assert "source_hash" in (tmp_path / "begun" / "runs" / "task" / "config.yaml").read_text()
