"""Two ranks are one machine: agreement, sharding, equal results, one message for one error."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from common import checkpoint as checkpoints
from common.cli import parse
from common.run import TrainOptions
from common.sampling import StepSampler, draw
from tests.launch import RANKS, Ended, torchrun
from tests.toy import ToyConfig, train_toy

COMPARABLE = "--batch_norm false --dropout 0 --tensorboard false --keep_last 9"  # nothing that a rank alters
QUIET = "--tensorboard false --log_every 100"


def train_here(flags: str) -> None:
    """Train the toy in this process, as one rank."""
    parsed = parse(flags.split(), ToyConfig, TrainOptions)
    assert train_toy(parsed.config, parsed.run).state == "finished"


class Ranks:
    """What the ranks of the one job of this file reported, and where its runs lie."""

    def __init__(self, folder: Path, ended: Ended) -> None:
        self.folder = folder
        self.ended = ended

    def both(self, name: str) -> list[dict[str, Any]]:
        """Return the reports of rank 0 and rank 1."""
        return [json.loads((self.folder / f"{name}.{rank}.json").read_text()) for rank in (0, 1)]

    def tensors(self, name: str, file: str = "last.pt") -> dict[str, torch.Tensor]:
        """Return the weights of both networks and their averages in a run's checkpoint, under flat names."""
        found = checkpoints.load(self.folder / name / "checkpoints" / file, package="toy")
        parts = [
            {key: updater[key] for key in ("module", "ema")} for updater in found.training["task"]["updates"]
        ]
        return dict(_flat("", {"weights": found.state_dict, "updates": parts}))


def _flat(prefix: str, tree: Any) -> list[tuple[str, torch.Tensor]]:
    if isinstance(tree, torch.Tensor):
        return [(prefix, tree)]
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [pair for key, value in items for pair in _flat(f"{prefix}/{key}", value)]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """Run all cases of this file in one job of two ranks, since starting one takes seconds."""
    folder = tmp_path_factory.mktemp("ranks")
    train_here(f"--out {folder}/one_by_8 --batch_size 8 {COMPARABLE}")
    train_here(f"--out {folder}/accumulated --batch_size 8 --accumulate 2 {COMPARABLE}")
    one = folder / "one_by_8" / "checkpoints" / "step10.pt"
    cases = {
        "primitives": "",
        "two_by_4": f"--batch_size 4 {COMPARABLE}",
        "one_then_two": f"--batch_size 4 {COMPARABLE} --resume {one}",
        "ragged": f"--num_samples 10 --batch_size 3 {QUIET}",
        "single_sample": f"--num_samples 1 --batch_size 2 {QUIET}",
        "nan_loss": f"--nan_rank 1 --nan_step 7 {QUIET}",
        "nan_data": f"--bad_sample 3 --save_every 1 {QUIET}",
        "skipped": f"--nan_rank 1 --nan_step 7 --on_nonfinite skip {QUIET}",
        "missing": f"--missing_on_rank 1 {QUIET}",
        "locked": f"{QUIET}",
    }
    (folder / "locked").mkdir()
    (folder / "locked" / "a stranger's file").touch()
    args = [str(folder)]
    for name, flags in cases.items():
        args += [name, f"--out {folder}/{name} {flags}"]
    ended = torchrun(RANKS, args, folder / "output.txt")
    assert (folder / "locked.1.json").exists(), ended.output[-3000:]
    two = folder / "two_by_4" / "checkpoints" / "step10.pt"
    train_here(f"--out {folder}/two_then_one --batch_size 8 {COMPARABLE} --resume {two}")
    return Ranks(folder, ended)


def test_reductions(ranks: Ranks) -> None:
    """Sum, maximum and mean over ranks are the same everywhere and leave their argument alone."""
    for rank, seen in enumerate(ranks.both("primitives")):
        assert seen["world"] == [2, rank == 0, rank]
        assert (seen["sum"], seen["max"], seen["mean"]) == ([3.0, 10.0], [2.0, 10.0], [1.5, 5.0])
        assert seen["untouched"] == [rank + 1.0, 10.0 * rank]
        assert seen["sums"] == {"a": 0.1 + 1.1, "b": 1.0}  # float64: no rounding to single precision


def test_exchange(ranks: Ranks) -> None:
    """Gathering keeps the order of ranks; broadcasting gives rank 0's values to all."""
    for seen in ranks.both("primitives"):
        assert seen["gathered"] == [{"rank": 0}, {"rank": 1}]
        assert seen["broadcast"] == "from 0"
        assert seen["tensors"] == [[1.0, 0.0], [0.0] * 4]


def test_buffers_are_averaged(ranks: Ranks) -> None:
    """BatchNorm statistics become their mean over ranks; the integer counter stays."""
    for rank, seen in enumerate(ranks.both("primitives")):
        assert seen["buffers"]["running_mean"] == [0.5, 0.5]
        assert seen["buffers"]["running_var"] == [2.0, 2.0]
        assert seen["buffers"]["num_batches_tracked"] == [rank]


def test_main_goes_first(ranks: Ranks) -> None:
    """Rank 1 enters a main_first block when rank 0 has left it."""
    assert all(seen["main_first"] for seen in ranks.both("primitives"))


@pytest.mark.parametrize("count", [0, 1, 7])
def test_shards_cover_once(ranks: Ranks, count: int) -> None:
    """Every piece of work is on exactly one rank, also when there are fewer pieces than ranks."""
    shards = [seen["shards"][str(count)] for seen in ranks.both("primitives")]
    assert sorted(shards[0] + shards[1]) == list(range(count))


def test_errors_are_shared(ranks: Ranks) -> None:
    """An error of one rank is raised on both with its kind and text; without one the block passes."""
    for seen in ranks.both("primitives"):
        one, all_failed, none = seen["shared"]
        assert one == ["DataError", "file missing on rank 1", True, 3]
        assert all_failed == ["DataError", "file missing on rank 0", True, 3]
        assert none is None


@pytest.mark.parametrize("num_samples", [1, 5, 24])
def test_samples_do_not_depend_on_ranks(ranks: Ranks, num_samples: int) -> None:
    """Two ranks with batch 3 draw, step by step, the samples of one process with batch 6."""
    orders = [seen["order"][str(num_samples)] for seen in ranks.both("primitives")]
    alone = [[d.index for d in draws] for draws in StepSampler(num_samples, 6, 5, 0, 4)]
    assert [first + second for first, second in zip(*orders, strict=True)] == alone
    drawn = [draw(position, num_samples, 5).index for position in range(num_samples)]
    assert sorted(drawn) == list(range(num_samples))  # an epoch is each sample once


def assert_same_training(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], bound: float) -> None:
    """Assert that all tensors agree within `bound` of their largest value."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        scale = float(value.double().abs().max()) or 1.0
        difference = float((value.double() - other[name].double()).abs().max())
        assert difference <= bound * scale, f"{name}: differs by {difference / scale:.3g} of its size"


@pytest.mark.parametrize("other", ["two_by_4", "accumulated"])
def test_split_batch_changes_nothing(ranks: Ranks, other: str) -> None:
    """One process with batch 8, two with 4, and one with two halves reach the same state within 1e-6."""
    assert_same_training(ranks.tensors("one_by_8"), ranks.tensors(other), 1e-6)


@pytest.mark.parametrize("other", ["one_then_two", "two_then_one"])
def test_resume_on_other_world_size(ranks: Ranks, other: str) -> None:
    """A run continued with another number of ranks sees the same samples and ends the same within 1e-6."""
    assert_same_training(ranks.tensors("one_by_8"), ranks.tensors(other), 1e-6)
    assert not (ranks.folder / other / "checkpoints" / "step5.pt").exists()  # it did not start again


@pytest.mark.parametrize("name", ["ragged", "single_sample"])
def test_uneven_samples(ranks: Ranks, name: str) -> None:
    """Samples that do not divide by ranks and batch hang nothing; evaluation counts each of 7 once."""
    for result in ranks.both(name):
        assert (result["state"], result["step"]) == ("finished", 18)
        assert result["scores"]["count"] == 7
    assert ranks.both(name)[0] == ranks.both(name)[1]


def failed_alike(ranks: Ranks, name: str, kind: str) -> str:
    """Assert that both ranks raised the same error, known as shared, and return its message."""
    first, second = ranks.both(name)
    assert first == second
    assert first["error"] == kind and first["shared"]
    return first["message"]


def test_nan_in_one_rank_stops_both(ranks: Ranks) -> None:
    """A NaN loss on rank 1 stops both ranks before the update; the message says where and what is good."""
    message = failed_alike(ranks, "nan_loss", "DivergedError")
    last = ranks.folder / "nan_loss" / "checkpoints" / "last.pt"
    for part in ("step 7", "loss nan", "rank 1", "learning rate", "the input is finite", str(last)):
        assert part in message, message
    status = json.loads((ranks.folder / "nan_loss" / "status.json").read_text())
    assert (status["state"], status["step"]) == ("failed", 7)
    assert checkpoints.load(last).step < 7
    assert all(bool(torch.isfinite(t).all()) for t in ranks.tensors("nan_loss").values())


def test_nan_in_data_names_the_file(ranks: Ranks) -> None:
    """A NaN sample stops both ranks at the very step that draws it and is named; the last state is finite."""
    message = failed_alike(ranks, "nan_data", "DivergedError")
    assert "points/3.npy" in message and "repair the data" in message
    position = next(p for p in range(24) if draw(p, 24, TrainOptions().seed).index == 3)
    step = position // (2 * ToyConfig().batch_size)
    assert f"step {step}:" in message
    if step > 0:
        assert all(bool(torch.isfinite(t).all()) for t in ranks.tensors("nan_data").values())


def test_nan_can_be_skipped(ranks: Ranks) -> None:
    """With the policy skip one NaN update is left out on both ranks, which stay equal and finish finite."""
    first, second = ranks.both("skipped")
    assert first == second and first["state"] == "finished"
    assert math.isfinite(first["scores"]["off_line"])
    assert all(bool(torch.isfinite(t).all()) for t in ranks.tensors("skipped").values())


def test_missing_file_on_one_rank(ranks: Ranks) -> None:
    """A file that rank 1 alone misses is one error with one text on both, before any folder is made."""
    assert "points/7.npy: no such file" in failed_alike(ranks, "missing", "DataError")
    assert not (ranks.folder / "missing").exists()


def test_refused_folder_on_rank_0_ends_both(ranks: Ranks) -> None:
    """Rank 0 alone looks at the output folder; what it refuses ends rank 1 too."""
    assert "not empty" in failed_alike(ranks, "locked", "UserError")


def test_only_rank_0_speaks(ranks: Ranks) -> None:
    """Every line of progress is said once, and metrics.jsonl has one record a step."""
    assert ranks.ended.count("off_line") > 0
    records = [json.loads(s) for s in (ranks.folder / "two_by_4" / "metrics.jsonl").read_text().splitlines()]
    keys = [(record["step"], tuple(record)) for record in records]
    assert len(set(keys)) == len(keys)
    assert (ranks.folder / "two_by_4" / "log.txt").read_text().count("18 steps on 2 rank(s)") == 1


def test_one_rank_functions_cost_nothing() -> None:
    """Without a launcher every function works and returns what it was given."""
    from common import distributed

    tensor = torch.tensor([2.0])
    assert distributed.reduce_sum(tensor) is tensor
    assert distributed.gather_objects(3) == [3] and distributed.broadcast_object(3) == 3
    assert list(distributed.shard(3)) == [0, 1, 2] and distributed.is_main()
    module = torch.nn.Linear(1, 1)
    assert distributed.unwrap(distributed.parallel(module)) is module
