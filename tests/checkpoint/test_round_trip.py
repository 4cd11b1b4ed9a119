"""What n ranks wrote, m ranks read, bit for bit; and what does not fit is refused by name."""

import json
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from onecurve.checkpoint import Alone, Retention, TensorWindow, Writer, load, read_manifest, read_state, verify
from onecurve.checkpoint.tensors import STORED_DTYPES, is_finite
from onecurve.errors import LaunchError
from tests.checkpoint.ranks import (
    empty_tensors,
    on_threads,
    pieces_of,
    same_bits,
    tensors_at,
)


def save(
    root: Path, step: int, pieces_by_rank: list[list[TensorWindow]], state: dict | None = None, keep: int = 9
) -> Path:
    def work(peers):
        writer = Writer(root, peers, Retention(keep))
        writer.save(step, pieces_by_rank[peers.rank], state or {})
        return writer.wait()

    reports = on_threads(len(pieces_by_rank), work)
    assert [report.error for report, *_ in reports] == [""] * len(pieces_by_rank)
    return root / f"step-{step:08d}"


@st.composite
def partitions(draw, numel: int, world_size: int) -> list[list[tuple[int, int]]]:
    """Cut a flattened tensor anywhere and deal the runs to ranks."""
    cuts = sorted({0, numel, *draw(st.lists(st.integers(0, numel), max_size=5))})
    dealt: list[list[tuple[int, int]]] = [[] for _ in range(world_size)]
    for start, stop in pairwise(cuts):
        dealt[draw(st.integers(0, world_size - 1))].append((start, stop))
    if not numel:
        dealt[0].append((0, 0))
    return dealt


@st.composite
def layouts(draw):
    shapes = draw(st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=1, max_size=4))
    dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8])
    tensors, writers = {}, draw(st.integers(1, 4))
    held: list[list[TensorWindow]] = [[] for _ in range(writers)]
    wanted = []
    for number, shape in enumerate(shapes):
        name, numel = f"key/tensor.{number}", torch.Size(shape).numel()
        tensors[name] = (torch.randn(shape, generator=torch.Generator().manual_seed(number)) * 99).to(draw(dtypes))
        flat = tensors[name].view(-1)
        for rank, runs in enumerate(draw(partitions(numel, writers))):
            held[rank] += [TensorWindow(name, flat[start:stop], start, numel, tuple(shape)) for start, stop in runs]
        for _ in range(draw(st.integers(1, 3))):
            start = draw(st.integers(0, numel))
            wanted.append((name, start, draw(st.integers(start, numel))))
    return tensors, held, wanted


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(layouts())
def test_any_partition_is_read_back_by_any_other(layout):
    tensors, held, wanted = layout
    with tempfile.TemporaryDirectory() as root:
        folder = save(Path(root), 1, held)
        assert verify(folder) == []
        pieces = [
            TensorWindow(
                name,
                torch.full((stop - start,), 3).to(tensors[name].dtype),
                start,
                tensors[name].numel(),
                tuple(tensors[name].shape),
            )
            for name, start, stop in wanted
        ]
        load(folder, pieces, Alone())
        for piece in pieces:
            assert same_bits(piece.values, tensors[piece.tensor].view(-1)[piece.offset : piece.end])


@pytest.mark.parametrize("dtype", STORED_DTYPES.values(), ids=STORED_DTYPES)
def test_every_dtype_survives(tmp_path, dtype):
    tensor = torch.arange(100).to(dtype)
    folder = save(tmp_path, 1, [[TensorWindow("t", tensor, 0, 100, (10, 10))]])
    read = torch.zeros(100, dtype=dtype)
    load(folder, [TensorWindow("t", read, 0, 100, (10, 10))])
    assert same_bits(read, tensor)
    assert verify(folder) == []


def test_special_values_keep_their_bits(tmp_path):
    tensor = torch.tensor([-0.0, 1e-45, torch.finfo(torch.float32).max, -1e-38])
    folder = save(tmp_path, 1, [[TensorWindow("t", tensor, 0, 4, (4,))]])
    read = torch.zeros(4)
    load(folder, [TensorWindow("t", read, 0, 4, (4,))])
    assert same_bits(read, tensor)


def test_a_strided_view_is_saved_and_filled(tmp_path):
    tensor = torch.randn(10, 2)
    folder = save(tmp_path, 1, [[TensorWindow("t", tensor[:, 1], 0, 10, (10,))]])
    read = torch.zeros(10, 2)
    load(folder, [TensorWindow("t", read[:, 1], 0, 10, (10,))])
    assert same_bits(read[:, 1].contiguous(), tensor[:, 1].contiguous())
    assert not read[:, 0].any()


def test_the_files_are_plain_safetensors_and_json(tmp_path):
    folder = save(tmp_path, 120, [pieces_of(tensors_at(1), rank, 2) for rank in range(2)], {"run_id": "r", "x": [1]})
    names = ["manifest.json", "rank-00000-of-00002.safetensors", "rank-00001-of-00002.safetensors", "state.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    halves = [load_file(folder / name) for name in names[1:3]]
    joined = torch.cat([halves[0]["param/a.weight@0"], halves[1]["param/a.weight@31756"]])
    assert same_bits(joined, tensors_at(1)["param/a.weight"])
    assert read_state(folder) == {"run_id": "r", "x": [1]}
    manifest = read_manifest(folder)
    assert (manifest.step, manifest.world_size, manifest.run_id) == (120, 2, "r")
    assert manifest.num_bytes == sum((folder / name).stat().st_size for name in names[1:])
    stored = manifest.tensors["param/a.weight"]
    assert (stored.shape, stored.numel, stored.dtype, stored.files) == ((301, 211), 63511, "float32", set(names[1:3]))
    assert (tmp_path / "latest").read_text() == "step-00000120\n"
    assert "checksum" in json.loads((folder / "manifest.json").read_text())


def test_a_rank_reads_only_what_it_needs(tmp_path):
    folder = save(tmp_path, 1, [pieces_of(tensors_at(1), rank, 2) for rank in range(2)])
    (folder / "rank-00001-of-00002.safetensors").unlink()
    read = empty_tensors()
    load(folder, pieces_of(read, 0, 2))
    assert same_bits(read["param/a.weight"].view(-1)[:31756], tensors_at(1)["param/a.weight"].view(-1)[:31756])
    with pytest.raises(LaunchError, match=r"rank-00001-of-00002\.safetensors cannot be read"):
        load(folder, pieces_of(read, 1, 2))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda p: p.pop(), "count/step is in the checkpoint, and no rank has it"),
        (lambda p: p.append(TensorWindow("new", torch.zeros(2), 0, 2, (2,))), "new is not in the checkpoint"),
        (
            lambda p: p.append(TensorWindow("param/a.bias", torch.zeros(8), 0, 8, (8,))),
            r"param/a.bias is float32 \[7\] in the checkpoint, here float32 \[8\]",
        ),
        (
            lambda p: p.append(TensorWindow("param/a.bias", torch.zeros(7).half(), 0, 7, (7,))),
            r"param/a.bias is float32 \[7\] in the checkpoint, here float16 \[7\]",
        ),
    ],
)
def test_other_tensors_are_refused_by_name_on_every_rank_before_anything_is_read(tmp_path, change, told):
    folder = save(tmp_path, 1, [pieces_of(tensors_at(1))])
    tensors = empty_tensors()

    def work(peers):
        pieces = pieces_of(tensors, peers.rank, peers.world_size)
        if peers.rank == 1 or "no rank" in told:
            change(pieces)
        with pytest.raises(LaunchError, match=told):
            load(folder, pieces, peers)

    on_threads(2, work)
    assert not any(tensor.any() for tensor in tensors.values())


@pytest.mark.parametrize(
    ("rank_1", "told"),
    [
        ((4, 10), "t: elements 3 to 3 are missing"),
        ((2, 10), "t: elements from 2 on are held twice or lie outside"),
        ((3, 9), "t: elements 9 to 9 are missing"),
    ],
)
def test_windows_that_do_not_make_a_whole_are_never_committed(tmp_path, rank_1, told):
    tensor = torch.randn(10)

    def work(peers):
        start, stop = rank_1 if peers.rank else (0, 3)
        writer = Writer(tmp_path, peers, Retention(), "continue")
        writer.save(1, [TensorWindow("t", tensor[start:stop], start, 10, (10,))], {})
        return writer.wait()[0]

    for report in on_threads(2, work):
        assert told in report.error
        assert report.folder is None
    assert list(tmp_path.iterdir()) == []


def test_ranks_that_disagree_on_a_tensor_are_never_committed(tmp_path):
    def work(peers):
        writer = Writer(tmp_path, peers, Retention(), "continue")
        writer.save(1, [TensorWindow("t", torch.zeros(5), 5 * peers.rank, 10, (2, 5) if peers.rank else (10,))], {})
        return writer.wait()[0].error

    assert all("ranks disagree on t" in error for error in on_threads(2, work))


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.integers(1, 300),
    st.data(),
)
def test_a_single_value_that_is_not_finite_is_seen(dtype, numel, data):
    values = torch.randn(numel).to(dtype)
    assert is_finite(values)
    values[data.draw(st.integers(0, numel - 1))] = data.draw(
        st.sampled_from([float("nan"), float("inf"), -float("inf")])
    )
    assert not is_finite(values)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_what_is_not_finite_is_never_committed(tmp_path, value):
    good = [pieces_of(tensors_at(1), rank, 2) for rank in range(2)]
    save(tmp_path, 1, good)
    tensors = tensors_at(2)
    tensors["param/a.weight"][300, 5] = value

    def work(peers):
        writer = Writer(tmp_path, peers, Retention(), "continue")
        writer.save(2, pieces_of(tensors, peers.rank, 2), {})
        return writer.wait()[0].error

    errors = on_threads(2, work)
    assert errors == ["The checkpoint of step 2 could not be saved: rank 1: param/a.weight is not finite."] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001"]
