"""Every kind of damage is found by `verify`, named, refused on load, and the checkpoint before is used."""

import json
import os
import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from onecurve.checkpoint import Alone, Retention, TensorWindow, Writer, check, find, load, read_manifest, verify
from onecurve.checkpoint.folders import supersede
from onecurve.checkpoint.manifest import FileEntry, Manifest, _checksum
from onecurve.checkpoint.staging import file_sha256
from onecurve.errors import LaunchError
from tests.checkpoint.ranks import empty_tensors, on_threads, pieces_of, same_bits, tensors_at

RANK_0, RANK_1 = "rank-00000-of-00002.safetensors", "rank-00001-of-00002.safetensors"


def write_run(root: Path, steps: list[int], run_id: str = "one", seed: int = 0) -> Path:
    def work(peers):
        writer = Writer(root, peers, Retention(9))
        for step in steps:
            writer.save(step, pieces_of(tensors_at(seed + step), peers.rank, 2), {"step": step, "run_id": run_id})
        writer.wait()

    on_threads(2, work)
    return root


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """Steps 1 to 3 of two runs."""
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "one", [1, 2, 3])
    write_run(folder / "two", [1, 2, 3], "two", seed=100)
    return folder


@pytest.fixture
def runs(pristine, tmp_path):
    return Path(shutil.copytree(pristine, tmp_path / "runs"))


def truncate(folder: Path) -> None:
    os.truncate(folder / RANK_1, (folder / RANK_1).stat().st_size // 2)


def flip_a_bit(folder: Path, name: str = RANK_1, where: int = -5) -> None:
    content = bytearray((folder / name).read_bytes())
    content[where] ^= 1
    (folder / name).write_bytes(content)


def swap_two_files(folder: Path) -> None:
    os.rename(folder / RANK_0, folder / "other")
    os.rename(folder / RANK_1, folder / RANK_0)
    os.rename(folder / "other", folder / RANK_1)


def take_a_file_of_another_step(folder: Path) -> None:
    shutil.copy(folder.parent / "step-00000002" / RANK_1, folder / RANK_1)


def take_the_manifest_of_another_run(folder: Path) -> None:
    shutil.copy(folder.parent.parent / "two" / folder.name / "manifest.json", folder / "manifest.json")


def take_another_step_whole(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("step-00000002"), folder)


def link_a_file(folder: Path) -> None:
    os.rename(folder / RANK_0, folder.parent / "elsewhere")
    (folder / RANK_0).symlink_to(folder.parent / "elsewhere")


def rewrite_manifest(folder: Path, **changes) -> None:
    manifest = read_manifest(folder)
    fields = {name: getattr(manifest, name) for name in ("step", "world_size", "run_id", "files", "tensors")}
    (folder / "manifest.json").write_text(Manifest(**fields | changes).to_text())


def poison_with_a_consistent_manifest(folder: Path) -> None:
    tensors = load_file(folder / RANK_0)
    tensors["param/a.bias@0"][2] = torch.nan
    save_file(tensors, folder / RANK_0)
    files = read_manifest(folder).files
    new = FileEntry(RANK_0, (folder / RANK_0).stat().st_size, file_sha256(folder / RANK_0))
    rewrite_manifest(folder, files=tuple(new if file.name == RANK_0 else file for file in files))


def lose_a_window_consistently(folder: Path) -> None:
    tensors = load_file(folder / RANK_0)
    del tensors["param/a.bias@0"]
    save_file(tensors, folder / RANK_0)
    files = read_manifest(folder).files
    new = FileEntry(RANK_0, (folder / RANK_0).stat().st_size, file_sha256(folder / RANK_0))
    rewrite_manifest(folder, files=tuple(new if file.name == RANK_0 else file for file in files))


def forget_a_rank_in_the_manifest(folder: Path) -> None:
    tensors = read_manifest(folder).tensors
    short = {name: replace(t, held=tuple(h for h in t.held if h.file != RANK_1)) for name, t in tensors.items()}
    rewrite_manifest(folder, tensors=short)


DAMAGES = [
    (truncate, f"{RANK_1} has .* bytes instead of"),
    (flip_a_bit, f"{RANK_1} does not hash"),
    (lambda folder: (folder / RANK_0).unlink(), f"{RANK_0} is missing"),
    (swap_two_files, f"{RANK_0} "),
    (take_a_file_of_another_step, f"{RANK_1} does not hash"),
    (take_the_manifest_of_another_run, f"{RANK_0} does not hash"),
    (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
    (lambda folder: flip_a_bit(folder, "manifest.json", 300), "manifest.json: "),
    (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json: it is no manifest"),
    (lambda folder: (folder / "manifest.json").write_bytes(b"\xff"), "manifest.json cannot be read"),
    (lambda folder: (folder / "state.json").unlink(), "state.json is missing"),
    (lambda folder: flip_a_bit(folder, "state.json", 3), "state.json does not hash"),
    (take_another_step_whole, "the manifest is of step 2"),
    (link_a_file, f"{RANK_0} is missing"),
    (poison_with_a_consistent_manifest, f"{RANK_0}: param/a.bias@0 is not finite"),
    (lose_a_window_consistently, f"{RANK_0}: param/a.bias@0 is not in it"),
    (forget_a_rank_in_the_manifest, "param/a.weight: elements 31756 to 63510 are missing"),
]


@pytest.mark.parametrize(("damage", "told"), DAMAGES, ids=[told for _, told in DAMAGES])
def test_damage_is_found_refused_by_name_and_the_one_before_is_used(runs, damage, told):
    root = runs / "one"
    newest = root / "step-00000003"
    assert verify(newest) == []
    damage(newest)
    _assert_told(verify(newest), told)

    said: list[str] = []
    found = on_threads(2, lambda peers: find(root, peers, said.append))
    assert {one.step for one in found} == {2}
    assert [name for name, _ in found[0].refused] == ["step-00000003"]
    _assert_told([reason for _, reason in found[0].refused], told)
    assert len(said) == 2, said
    assert "step-00000003" in said[0]
    assert "step-00000002 is used instead" in said[1]
    assert (root / "step-00000003.bad").is_dir()
    read = empty_tensors()
    load(found[0].folder, pieces_of(read), Alone())
    assert all(same_bits(read[name], tensor) for name, tensor in tensors_at(2).items())


def test_a_gap_is_noticed_even_by_a_load_that_nothing_verified(runs):
    folder = runs / "one" / "step-00000003"
    forget_a_rank_in_the_manifest(folder)
    tensors = empty_tensors()
    with pytest.raises(LaunchError, match=r"param/a\.weight: elements 31756 to 63510 are missing"):
        load(folder, pieces_of(tensors))
    assert not any(tensor.any() for tensor in tensors.values())


def _assert_told(problems: list[str], told: str) -> None:
    assert any(re.search(told, problem) for problem in problems), problems


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_in_any_file_is_found(pristine, data):
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(shutil.copytree(pristine / "one" / "step-00000003", Path(scratch) / "step-00000003"))
        path = data.draw(st.sampled_from(sorted(folder.iterdir())))
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        # JSON may say the same in another way, such as a blank that became a tab: no damage
        same = path.name == "manifest.json" and json.loads((pristine / "one" / folder.name / path.name).read_text())
        problems = verify(folder)
        if not (same and not problems):
            assert any(path.name in problem for problem in problems), problems
        else:
            assert read_manifest(folder) == read_manifest(pristine / "one" / folder.name)


def test_with_no_good_one_left_nothing_is_renamed_and_the_run_does_not_start_anew(runs):
    root = runs / "one"
    for step in (1, 2, 3):
        flip_a_bit(root / f"step-{step:08d}")
    before = sorted(path.name for path in root.iterdir())

    def work(peers):
        with pytest.raises(LaunchError, match=r"No checkpoint is valid\. step-00000003: .*step-00000001"):
            find(root, peers)

    on_threads(2, work)
    assert sorted(path.name for path in root.iterdir()) == before


def test_a_newer_format_is_no_damage(runs):
    root = runs / "one"
    path = root / "step-00000003" / "manifest.json"
    body = json.loads(path.read_text())
    del body["checksum"]
    body["format"] = 2
    path.write_text(json.dumps(body | {"checksum": _checksum(body)}))
    assert "has format 2; this onecurve reads format 1" in verify(path.parent)[0]

    def work(peers):
        with pytest.raises(LaunchError, match="format 2"):
            find(root, peers)

    on_threads(2, work)
    assert path.exists()


def test_a_file_name_cannot_leave_the_folder(runs):
    folder = runs / "one" / "step-00000003"
    entry = FileEntry("../../two/step-00000003/state.json", 1, "")
    rewrite_manifest(folder, files=(*read_manifest(folder).files, entry))

    _assert_told(verify(folder), "names a file outside the folder")


def test_each_rank_hashes_its_share_and_all_hear_of_it(runs):
    folder = runs / "one" / "step-00000003"
    flip_a_bit(folder, RANK_1)
    assert on_threads(2, lambda peers: check(folder, peers)) == [[f"{RANK_1} does not hash to what was written"]] * 2


def test_where_there_is_nothing_nothing_is_found(tmp_path):
    assert find(tmp_path / "absent", Alone()) is None
    assert find(tmp_path, Alone()) is None


def test_leftovers_of_a_crash_are_removed_and_told_and_strangers_are_left(runs):
    root = runs / "one"
    os.rename(root / "step-00000003", root / "step-00000003.incomplete")
    os.rename(root / "step-00000002", root / "step-00000002.trash")
    (root / "latest.incomplete").write_text("st")
    for stranger in ("notes.incomplete", "step-7.trash"):
        (root / stranger).mkdir()
    said: list[str] = []
    found = find(root, Alone(), said.append)
    assert found is not None
    assert (found.step, found.refused) == (1, [])
    assert found.removed == ["latest.incomplete", "step-00000002.trash", "step-00000003.incomplete"]
    assert len(said) == 3
    left = sorted(path.name for path in root.iterdir())
    assert left == ["latest", "notes.incomplete", "step-00000001", "step-7.trash"]


def test_a_leftover_does_not_stand_in_the_way_of_its_step(tmp_path):
    left = tmp_path / "step-00000001.incomplete"
    left.mkdir()
    (left / "rank-00000-of-00002.safetensors").write_text("half")
    shutil.copytree(left, tmp_path / "step-00000001.replaced")
    write_run(tmp_path, [1, 1])
    assert verify(tmp_path / "step-00000001") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001"]


def test_a_wrong_latest_misleads_nobody(runs):
    (runs / "one" / "latest").write_text("step-00000001\n")
    found = find(runs / "one", Alone())
    assert found is not None
    assert found.step == 3


def test_a_bad_name_is_used_once(runs):
    root = runs / "one"
    (root / "step-00000003.bad").mkdir()
    truncate(root / "step-00000003")
    find(root, Alone(), lambda line: None)
    assert (root / "step-00000003.bad2" / RANK_0).is_file()


def test_going_back_sets_the_abandoned_future_aside(runs):
    root = runs / "one"
    assert supersede(root, 1) == ["step-00000002.superseded", "step-00000003.superseded"]
    found = find(root, Alone())
    assert found is not None
    assert found.step == 1


def test_what_the_disk_made_of_a_file_is_noticed_before_the_commit(tmp_path):
    """The planted fault: the file changes between being written and being read back."""

    def phase(name):
        if name == "written":
            flip_a_bit(tmp_path / "step-00000002.incomplete", "rank-00000-of-00001.safetensors")

    writer = Writer(tmp_path, Alone(), Retention(), "continue")
    writer.save(1, pieces_of(tensors_at(1)), {})
    writer.wait()
    writer.phase = phase
    writer.save(2, pieces_of(tensors_at(2)), {})
    (report,) = writer.wait()
    assert "What was read back is not what was written" in report.error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001"]


def test_a_disk_that_ranks_do_not_share_is_noticed(tmp_path):
    """Each rank has its own folder, as with a node-local output directory."""
    (tmp_path / "node-1" / "step-00000001.incomplete").mkdir(parents=True)

    def work(peers):
        writer = Writer(tmp_path / f"node-{peers.rank}", peers, Retention(), "continue")
        writer.save(1, pieces_of(tensors_at(1), peers.rank, 2), {})
        return writer.wait()[0].error

    assert all("must be on a disk that all ranks share" in error for error in on_threads(2, work))


def test_a_piece_outside_its_tensor_is_our_own_mistake(tmp_path):
    with pytest.raises(AssertionError):
        Writer(tmp_path, Alone(), Retention()).save(1, [TensorWindow("t", torch.zeros(3), 2, 4, (4,))], {})
