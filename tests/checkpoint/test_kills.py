"""Kill -9 while a checkpoint is written: never one that loads but is wrong, and the newest good one is found."""

import random
import time
from pathlib import Path
from signal import SIGKILL

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from onecurve.checkpoint import Alone, Retention, TensorWindow, Writer, find, load, read_state
from onecurve.checkpoint.folders import steps
from onecurve.checkpoint.writer import PHASES
from onecurve.errors import LaunchError
from tests.checkpoint.ranks import (
    LOST,
    Processes,
    empty_tensors,
    pieces_of,
    same_bits,
    save_in_a_loop,
    tensors_at,
)

pytestmark = pytest.mark.distributed

FIRST_RANK_ONLY = PHASES[PHASES.index("state") :]


def inspect(root: Path, acknowledged: int) -> int:
    """Check what a kill left; return the step to go on from.

    Raises:
        AssertionError: A committed checkpoint is lost, refused or holds another step's values.
    """
    if steps(root) and (root / "latest").is_file():
        assert (root / (root / "latest").read_text().strip()).is_dir() or list(root.glob("*.replaced"))
    found = find(root, Alone(), lambda line: None)
    step = found.step if found else 0
    assert step >= acknowledged, f"step {acknowledged} was committed, and {step} is found"
    if found is None:
        return 0
    assert found.refused == [], "a kill made a checkpoint that is visible and bad"
    read = empty_tensors()
    load(found.folder, pieces_of(read), Alone())
    for name, tensor in tensors_at(step).items():
        assert same_bits(read[name], tensor), f"{name} is not step {step}'s"
    assert read_state(found.folder)["step"] == step
    unknown = [path.name for path in root.iterdir() if path.name != "latest" and path.suffix]
    assert unknown == [], "leftovers stay"
    return step


def run_and_kill_at(root: Path, first: int, world_size: int, phase: str, rank: int, all_at_once: bool) -> int:
    """Stop one rank at a phase, kill it or all; return the last step whose commit was acknowledged."""
    ranks = Processes(world_size, save_in_a_loop, root, first, (phase, rank))
    saved = first - 1
    while (message := ranks.news.recv())[0] != "at":
        saved = message[1]
    if all_at_once:
        ranks.kill()
    else:
        ranks.all[rank].kill()
        expected = [-SIGKILL if other == rank else LOST for other in range(world_size)]
        assert ranks.join() == expected, "a rank outlived the loss of another"
    return max([saved, *(step for kind, step, *_ in ranks.messages() if kind == "saved")])


def kill_at_each_phase(root: Path, times: int) -> None:
    """One life of a run: killed at every phase, resumed by another number of ranks each time."""
    step, random_ = 0, random.Random(0)
    for time_ in range(times):
        for number, phase in enumerate(PHASES):
            world_size = 1 + (number + time_) % 2
            rank = 0 if phase in FIRST_RANK_ONLY else random_.randrange(world_size)
            saved = run_and_kill_at(root, step + 1, world_size, phase, rank, random_.random() < 0.5)
            step = inspect(root, saved)
            # From the rename on the step is there, acknowledged or not; one saved again was there before
            committed = PHASES.index(phase) >= PHASES.index("moved-away")
            # A rank that is lost when its part is written need not keep rank 0 from the rename
            may_be = phase == "exchanged" and rank > 0
            assert step - saved in ({False, True} if may_be else {committed}), phase


def kill_at_random_moments(root: Path, times: int) -> None:
    step, random_ = 0, random.Random(1)
    for time_ in range(times):
        ranks = Processes(1 + time_ % 2, save_in_a_loop, root, step + 1, None)
        _, saved = ranks.news.recv()
        time.sleep(random_.uniform(0, 0.08))
        ranks.kill()
        saved = max([saved, *(message[1] for message in ranks.messages())])
        step = inspect(root, saved)


def test_killed_at_each_phase_once(tmp_path):
    kill_at_each_phase(tmp_path, 1)


def test_killed_at_eight_random_moments(tmp_path):
    kill_at_random_moments(tmp_path, 8)


@pytest.mark.slow
def test_killed_at_each_phase_six_times(tmp_path):
    kill_at_each_phase(tmp_path, 6)


@pytest.mark.slow
def test_killed_at_fifty_random_moments(tmp_path):
    kill_at_random_moments(tmp_path, 50)


def test_the_inspection_sees_each_way_to_be_wrong(tmp_path):
    def save(step, tensors, state):
        writer = Writer(tmp_path, Alone(), Retention(9))
        writer.save(step, pieces_of(tensors), state)
        writer.wait()

    save(1, tensors_at(1), {"step": 1})
    assert inspect(tmp_path, 1) == 1
    with pytest.raises(AssertionError, match="step 2 was committed, and 1 is found"):
        inspect(tmp_path, 2)
    wrong = tensors_at(2)
    wrong["exp_avg/a.weight"][300, 210] += 1
    save(2, wrong, {"step": 2})
    with pytest.raises(AssertionError, match=r"exp_avg/a\.weight is not step 2's"):
        inspect(tmp_path, 2)
    save(3, tensors_at(3), {"step": 3})
    (tmp_path / "step-00000003" / "state.json").write_text("{}")
    with pytest.raises(AssertionError, match="visible and bad"):
        inspect(tmp_path, 2)


def save_in_place(peers, tell, root: Path, first: int, stop_at) -> None:
    """The planted bug: no incomplete folder, no order; as most systems save."""
    folder = root / f"step-{first:08d}"
    folder.mkdir(parents=True)
    tensors = {f"{name}@0": tensor.view(-1) for name, tensor in tensors_at(first).items()}
    tell(("saved", 0))
    (root / "latest").write_text(folder.name)
    while True:
        for name in ("a", "b", "c"):
            save_file(tensors, folder / name)


def test_a_writer_that_saves_in_place_is_caught(tmp_path):
    ranks = Processes(1, save_in_place, tmp_path, 1, None)
    ranks.news.recv()
    time.sleep(0.05)
    ranks.kill()
    with pytest.raises(LaunchError, match=r"manifest\.json is missing"):
        inspect(tmp_path, 0)


def save_over_gloo(peers, tell, root: Path) -> None:
    class Gloo:
        rank, world_size = peers.rank, peers.world_size

        def gather(self, value):
            values = [None] * self.world_size
            dist.all_gather_object(values, value, group=group)
            return values

        def broadcast(self, value):
            return self.gather(value)[0]

        def barrier(self):
            dist.barrier(group=group)

    dist.init_process_group("gloo", f"file://{root}/store", rank=peers.rank, world_size=peers.world_size)
    group = dist.new_group(backend="gloo")
    writer = Writer(root / "checkpoints", Gloo(), Retention(2))
    for step in range(1, 6):
        tensors = tensors_at(step)
        writer.save(step, pieces_of(tensors, peers.rank, peers.world_size), {"step": step})
        writer.secure()
        for tensor in tensors.values():
            tensor.zero_()
        for _ in range(20):  # what training does meanwhile, on its own group
            dist.all_reduce(torch.ones(1000))
    writer.wait()
    found = find(root / "checkpoints", Gloo())
    read = empty_tensors()
    load(found.folder, pieces_of(read, 1 - peers.rank, peers.world_size), Gloo())
    mine = pieces_of(read, 1 - peers.rank, peers.world_size)
    expected = pieces_of(tensors_at(5), 1 - peers.rank, peers.world_size)
    tell((peers.rank, found.step, all(same_bits(a.values, b.values) for a, b in zip(mine, expected, strict=True))))
    dist.destroy_process_group()


def test_saving_over_gloo_while_training_uses_its_own_group(tmp_path):
    ranks = Processes(2, save_over_gloo, tmp_path)
    assert sorted(ranks.messages()) == [(0, 5, True), (1, 5, True)]
    assert ranks.join() == [0, 0]


def test_pieces_cover_what_they_are_cut_from():
    """The guard of these tests' own ground: shares of uneven tensors."""
    for world_size in (1, 2, 3):
        shares = [pieces_of(tensors_at(1), rank, world_size) for rank in range(world_size)]
        for name, tensor in tensors_at(1).items():
            parts: list[TensorWindow] = [piece for share in shares for piece in share if piece.tensor == name]
            assert same_bits(torch.cat([piece.values for piece in parts]), tensor.view(-1))
