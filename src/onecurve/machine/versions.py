"""What a run is computed with."""

import platform
import shutil
import subprocess
from importlib.metadata import version
from importlib.util import find_spec

from onecurve import __version__


def versions() -> dict[str, str]:
    """What the run was computed with: packages, Python, and the commit of the working directory where it has one."""
    packages = ("torch", "transformers", "accelerate", "deepspeed", "peft", "bitsandbytes", "torchao")
    found = {name: version(name) for name in packages if find_spec(name)}
    found |= {"onecurve": __version__, "python": platform.python_version()}
    if shutil.which("git"):
        asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        found["commit"] = asked.stdout.strip()
    return found
