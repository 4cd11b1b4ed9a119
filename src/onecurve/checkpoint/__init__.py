"""Checkpoints as files: flat windows written by all ranks, committed by one rename, verified before reading."""

from onecurve.checkpoint.folders import supersede
from onecurve.checkpoint.manifest import Manifest
from onecurve.checkpoint.peers import Alone, Peers
from onecurve.checkpoint.reader import Found, find, load, read_manifest, read_state
from onecurve.checkpoint.retention import Retention, forecast
from onecurve.checkpoint.start import Start, choose_start
from onecurve.checkpoint.tensors import TensorWindow
from onecurve.checkpoint.verification import check, verify
from onecurve.checkpoint.writer import SaveReport, Writer

__all__ = [
    "Alone",
    "Found",
    "Manifest",
    "Peers",
    "Retention",
    "SaveReport",
    "Start",
    "TensorWindow",
    "Writer",
    "check",
    "choose_start",
    "find",
    "forecast",
    "load",
    "read_manifest",
    "read_state",
    "supersede",
    "verify",
]
