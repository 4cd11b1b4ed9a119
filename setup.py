"""What pyproject.toml cannot say: a wheel also holds the files that a checkout has at its root."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
SHIPPED = ("train.py", "accelerate_configs", "ds_configs", "recipes", "quickstart")
ASSETS = Path("onecurve", "assets")  # onecurve.machine.files looks there; an editable install uses the checkout


class BuildWithAssets(build_py):
    """Copies them into the package as it is built."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source, target in self._assets().items():
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / source, target)

    def get_source_files(self) -> list[str]:
        """Also what an sdist must hold."""
        return [*super().get_source_files(), *self._assets()]

    def get_output_mapping(self) -> dict[str, str]:
        """Also where they go."""
        targets = {} if self.editable_mode else {target: source for source, target in self._assets().items()}
        return {**super().get_output_mapping(), **targets}

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Also what was written."""
        return [*super().get_outputs(include_bytecode), *({} if self.editable_mode else self._assets()).values()]

    def _assets(self) -> dict[str, str]:
        found = [path for name in SHIPPED for path in (ROOT / name, *sorted((ROOT / name).rglob("*")))]
        files = [path.relative_to(ROOT) for path in found if path.is_file() and "__pycache__" not in path.parts]
        return {str(file): str(Path(self.build_lib) / ASSETS / file) for file in files}


setup(cmdclass={"build_py": BuildWithAssets})
