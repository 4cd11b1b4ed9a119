"""Starting train.py as `accelerate launch` would, with its ranks as children of this process."""

from onecurve.launching.launch import Launch
from onecurve.launching.launch_file import LaunchFile, find_launch_file

__all__ = ["Launch", "LaunchFile", "find_launch_file"]
