"""The best weights are shared out over the ranks that hold them alike, and come back whole."""

import json

import pytest


@pytest.mark.distributed
def test_each_rank_keeps_its_share_and_all_get_everything_back(forks, tmp_path):
    ended = forks.run_script("tests.strategies.snapshot_ranks", "ddp", str(tmp_path))
    assert ended.exit_code == 0, ended.stderr
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert [rank["same"] for rank in ranks] == [True, True]
    assert sum(rank["kept"] for rank in ranks) == ranks[0]["whole"] == 5 * 3 + 3 + 4 * 3 + 1
    assert all(rank["kept"] < 0.7 * rank["whole"] for rank in ranks)
