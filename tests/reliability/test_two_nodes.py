"""Two torchrun agents on 127.0.0.1 stand for two nodes: the training is that of one node."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from tests.fault_seg.cases import make_cubes
from tests.launch import Job, torchrun
from tests.reliability.five import BY_NAME
from tests.toy_runs import differences, load

pytestmark = pytest.mark.promise("R4", package="fault_seg")
QUIET = "--device cpu --threads 1 --precision fp32 --tensorboard false --num_workers 0 --no_rgt --no_dhr"
SIZE = "--steps 4 --batch_train 1 --crop 16 --dist_timeout 120"


def free_port() -> int:
    """Return a port of this machine that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_nodes_of_one_rank_are_one_node_of_two(tmp_path: Path):
    """The weights, the order of samples and the files of two nodes equal those of two ranks on one."""
    data = make_cubes(tmp_path / "data", ntrain=4)
    script = BY_NAME["fault_seg"].script("train")
    flags = f"--data {data} {QUIET} {SIZE} --out ".split()
    port = free_port()
    jobs = []
    for node in (0, 1):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", str(node)]
        launcher += ["--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port", str(port)]
        out = [*flags, str(tmp_path / "nodes")]
        jobs.append(Job([*launcher, str(script), *out], tmp_path / f"node{node}.txt"))
    ended = [job.wait(240.0) for job in jobs]
    assert [e.returncode for e in ended] == [0, 0], "\n".join(e.output for e in ended)
    assert not any(job.orphans(within=10.0) for job in jobs)
    alone = torchrun(script, [*flags, str(tmp_path / "node")], tmp_path / "alone.txt", timeout=240.0)
    assert alone.returncode == 0, alone.output
    both, one = (load(tmp_path / name / "last.ckpt") for name in ("nodes", "node"))
    assert both["step"] == one["step"] == 4
    assert differences(both["state_dict"], one["state_dict"]) == []
