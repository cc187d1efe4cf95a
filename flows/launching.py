"""Training by several processes: torchrun starts them, on one machine or several, and ends them.

This process starts an agent, the agent starts a process for each device, and every one of them ends
when this one does. Rank 0 says on the agent's standard output how far it is; the agent says last
how it ended. One message is one line of JSON: [done, total, text] or {"error": {...}}.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.wire import read_error, write_error
from models.errors import BadSetting, FucinaError, TrainingFailed, first_line
from pipeline.progress import Progress, silent

if TYPE_CHECKING:
    from flows.stages import Job

_MODULE = "flows.launching"
_ATTACHED = ("-m", "pipeline.attached", _MODULE)
_LOOPBACK = "lo"
_PATIENCE = 900  # seconds that nodes wait for each other
_END = 60  # seconds for the agent to end its processes
_FAILURE = "failure-{}.json"


@dataclass(frozen=True)
class Placement:
    """Where one model is trained: `devices` processes on each of `nodes` machines.

    `node_rank` is this machine's number, and `rendezvous` the address HOST:PORT at machine 0 where
    they meet. Whoever reaches that port takes part: it belongs into a private network.
    """

    devices: int = 1
    nodes: int = 1
    node_rank: int = 0
    rendezvous: str = ""

    @property
    def world(self) -> int:
        return self.devices * self.nodes

    def check(self, device: str) -> None:
        """Raise `BadSetting` for what cannot be."""
        if not 0 <= self.node_rank < self.nodes:
            raise BadSetting(
                "no such node", got=f"--node-rank {self.node_rank}", expected=f"0..{self.nodes - 1}"
            )
        if (self.nodes > 1) != bool(self.rendezvous):
            raise BadSetting(
                "nodes meet at one address",
                got=f"--nodes {self.nodes} and "
                + (f"--rendezvous {self.rendezvous}" if self.rendezvous else "no --rendezvous"),
                fix="give --rendezvous HOST:PORT of node 0 with --nodes 2 or more",
            )
        host, _, port = self.rendezvous.rpartition(":")
        if self.rendezvous and not (host and port.isdecimal()):
            raise BadSetting(
                "--rendezvous is no address", got=self.rendezvous, expected="HOST:PORT"
            )
        if device.startswith("cuda"):
            import torch

            if self.devices > torch.cuda.device_count():
                raise BadSetting(
                    "there are fewer GPUs than --devices",
                    got=self.devices, expected=f"{torch.cuda.device_count()} or fewer",
                )  # fmt: skip


def launch(
    job: Job, placement: Placement, out: Path, checkpoint: Path | None, progress: Progress = silent
) -> None:
    """Train a job by several processes; the result lies in `out` of node 0.

    Raises what the training raised, and `TrainingFailed` naming the process that died.
    """
    from pipeline.distributed import Group, check_divisible

    placement.check(job.device)
    settings, rows = job.recipe.training[job.data], job.dataset.train.inputs
    check_divisible(
        job.recipe, settings, len(next(iter(rows.values()))), Group(0, placement.world)
    )  # before seconds of starting
    with tempfile.TemporaryDirectory(prefix="fucina-") as meeting:
        task = {
            "reference": job.reference,
            "data": job.data,
            "changes": job.changes,
            "device": job.device,
            "out": str(out),
            "checkpoint": str(checkpoint) if checkpoint else None,
            "meeting": meeting,
            **vars(placement),
        }
        with _agent(task, Path(meeting)) as agent:
            assert agent.stdout is not None
            outcome: dict[str, Any] = {}
            for line in agent.stdout:
                said = _parsed(line)
                if isinstance(said, list):
                    progress(*said)
                elif isinstance(said, dict):
                    outcome = said
            code = agent.wait(_END)
        if "error" in outcome:
            raise read_error(outcome["error"])
        if code:
            log = (Path(meeting) / "log").read_text(errors="replace").strip().splitlines()
            raise TrainingFailed(
                "the launcher of the training ended",
                got=f"exit code {code}" + (f", {log[-1]}" if log else ""),
            )


@contextmanager
def _agent(task: dict[str, Any], meeting: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (
        (meeting / "log").open("wb") as log,
        subprocess.Popen(
            [sys.executable, *_ATTACHED, json.dumps(task)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=_environment(task),
        ) as child,
    ):  # fmt: skip
        try:
            yield child
        finally:
            assert child.stdin is not None
            child.stdin.close()  # agent and processes read the other end
            try:
                child.wait(_END)
            except subprocess.TimeoutExpired:
                child.kill()


def _environment(task: dict[str, Any]) -> dict[str, str]:
    threads = max(1, (os.cpu_count() or 1) // task["devices"])
    settings = {"OMP_NUM_THREADS": str(threads)}
    if task["nodes"] == 1:  # listen to this machine only
        settings |= {"GLOO_SOCKET_IFNAME": _LOOPBACK, "NCCL_SOCKET_IFNAME": _LOOPBACK}
        # Else the agent opens a port to everybody, for processes that would meet there.
        settings["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    return settings | os.environ  # what the caller has set stays


def _parsed(line: bytes) -> object:
    try:
        return json.loads(line)
    except ValueError:  # somebody else's print
        return None


def _described(error: Exception, rank: int) -> dict[str, Any]:
    if isinstance(error, FucinaError):
        return write_error(error)
    failed = TrainingFailed(
        f"process {rank} of the training failed",
        got=f"{type(error).__name__}, {first_line(error)}",
        fix="run it again: it goes on after the last whole epoch",
    )
    failed.__cause__ = error
    return write_error(failed)


def agent(task: dict[str, Any]) -> None:
    """Be torchrun's agent of this machine: start its processes, and end all when one dies."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    alone = task["nodes"] == 1
    configuration = LaunchConfig(
        min_nodes=task["nodes"],
        max_nodes=task["nodes"],
        nproc_per_node=task["devices"],
        run_id=_MODULE,
        # A file is met by this machine's user only; a port by whoever reaches it.
        rdzv_backend="c10d" if alone else "static",
        rdzv_endpoint="" if alone else task["rendezvous"],
        rdzv_configs={"store_type": "file", "timeout": _PATIENCE}
        if alone
        else {"rank": task["node_rank"], "timeout": _PATIENCE},
        max_restarts=0,
    )
    try:
        elastic_launch(configuration, sys.executable)(*_ATTACHED, json.dumps(task))
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        path = Path(task["meeting"]) / _FAILURE.format(rank)
        if path.is_file():
            said = json.loads(path.read_bytes())
        else:
            code = failure.exitcode
            died = TrainingFailed(
                f"process {rank} of the training died",
                got=signal.Signals(-code).name if code < 0 else f"exit code {code}",
                fix="run it again: it goes on after the last whole epoch",
            )
            said = _described(died, rank)
        print(json.dumps({"error": said}), flush=True)


def work(task: dict[str, Any]) -> None:
    """Be one process of the training, as torchrun's variables in the environment say which."""
    rank, local = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK"))
    try:
        _train(task, rank, local)
    except Exception as error:
        path = Path(task["meeting"]) / _FAILURE.format(rank)
        path.write_text(json.dumps(_described(error, rank)))
        raise SystemExit(1) from error


def _train(task: dict[str, Any], rank: int, local: int) -> None:
    import torch
    import torch.distributed as dist

    from flows.stages import Job
    from pipeline.train import train

    device = task["device"]
    if device.startswith("cuda"):
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    job = Job(task["reference"], task["data"], changes=task["changes"], device=device)
    dataset = job.dataset
    backend = "nccl" if device.startswith("cuda") else "gloo"
    if task["nodes"] == 1:
        meet = f"file://{task['meeting']}/store"
        dist.init_process_group(backend, meet, rank=rank, world_size=task["devices"])
    else:
        dist.init_process_group(backend)
    # Every process writes what it has made; what the first made is the result.
    out = Path(task["out"]) if rank == 0 else Path(task["meeting"]) / f"rank-{rank}"
    out.mkdir(exist_ok=True)

    def tell(done: int, total: int, text: str) -> None:
        print(json.dumps([done, total, text]), flush=True)

    train(
        job.recipe, job.data, dataset, out,
        device=device, checkpoint=Path(task["checkpoint"]) if task["checkpoint"] else None,
        progress=tell if rank == 0 else silent,
    )  # fmt: skip
    dist.destroy_process_group()


if __name__ == "__main__":
    (work if "RANK" in os.environ else agent)(json.loads(sys.argv[1]))
