"""benchmarks.ranks: three ways to prune the same shards end with the same weights, or no speed is measured."""

from unittest.mock import patch

import pytest
import torch.distributed as dist

if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("needs torch.distributed with gloo", allow_module_level=True)
from rank_cases import failures

from benchmarks import ranks

WHOLE_BYTES = 100 * 1_000 * 2  # of "1e5" in bfloat16


def counts_what_each_sends(folder):
    result = ranks.run_case("1e5", "bfloat16")
    n, (ours, *gathers) = result["processes"], result["rows"]
    assert (n, result["n_tensors"], result["n_weights"]) == (dist.get_world_size(), 1, 100_000)
    assert ours["ratio"]["median"] == 1
    rounds = 2 + 3  # for keys of 15 bits, and for places of 17
    assert (ours["n_messages"], ours["n_bytes"]) == (rounds, 2 * (n - 1) / n * rounds * 256 * 8)
    assert [(row["n_messages"], row["n_bytes"]) for row in gathers] == [
        (messages, WHOLE_BYTES * (n - 1) / n) for messages in (1, 2)
    ]
    assert all(0 < row["us"]["q1"] <= row["us"]["median"] <= row["us"]["q3"] for row in result["rows"])


def no_speed_on_a_red_gate(folder):
    """One rank prunes one weight more than the others think."""

    def wrong(shards):
        ranks.by_histograms(shards)
        if dist.get_rank() == 1:
            shards.own[0].view(-1)[shards.own[0].view(-1).nonzero()[0]] = 0

    broken = {**ranks.CONTENDERS, "gather them to one rank": wrong}
    with patch.object(ranks, "CONTENDERS", broken), patch.object(ranks, "time_rounds") as timed:
        with pytest.raises(RuntimeError, match="the gate is red, so no speed is measured"):
            ranks.run_case("1e5", "float32")
        timed.assert_not_called()


CHECKS = (counts_what_each_sends, no_speed_on_a_red_gate)


@pytest.fixture(scope="module", params=[2, 4])
def failed(request, tmp_path_factory):
    return failures(request.param, CHECKS, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_over_ranks(failed, check):
    assert check.__name__ not in failed, failed[check.__name__]


def test_a_report_is_read_back_and_another_file_is_named(tmp_path, capsys):
    path = tmp_path / "ranks.json"
    assert ranks.main(["--processes", "2", "--inputs", "1e5", "--output", str(path)]) == 0
    printed = capsys.readouterr().out
    assert ranks.markdown(ranks.load(path)) in printed
    path.write_text("{}")
    with pytest.raises(ValueError, match=rf"{path}: expected a report of schema 1, written by benchmarks.ranks"):
        ranks.load(path)
