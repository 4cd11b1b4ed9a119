"""The devices that a test of tests/gpu runs on: its half for a CPU runs with the fast tests."""

import pytest
import torch

GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))
CPU_AND_GPU = ["cpu", pytest.param("cuda", marks=GPU)]
GPU_AND_SLOWLY_CPU = [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=GPU)]


def apart(ours, exact):
    """How far a tensor is from another: the norm of their difference over the latter's."""
    return float((ours.double().cpu() - exact.double().cpu()).norm() / exact.double().norm())
