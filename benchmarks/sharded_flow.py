"""The flow for several machines with many shards of many input files, whose runs are killed at random.

`python -m benchmarks.sharded_flow [SHARDS FILES KILLS ROWS]`, by default 200 shards of 1,000 files of 20 rows, and 60
kills. A Prefect server on SQLite, its deployments, and one worker with AT_ONCE runs, on this machine, where all share
the cores with the stand-in. A run that was killed is reported by its worker and started again by the flow.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from benchmarks.folders import write_corpus
from benchmarks.many_shards import PATHS, tell
from benchmarks.programs import peak_mebibytes, reporting_to_prefect
from demo.processes import stand_in

AT_ONCE, IN_FLIGHT = 4, 4  # runs of shards, requests of each
BETWEEN_KILLS_SECONDS = 8.0  # on average
PREFECT = str(Path(sys.executable).with_name("prefect"))
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class Flow:
    """A run of the deployment `annotate-sharded/annotate-sharded`."""

    def __init__(self, parameters: dict[str, Any]) -> None:
        retrying = httpx.HTTPTransport(retries=3)
        self._api = httpx.Client(
            base_url=f"{os.environ['PREFECT_API_URL']}/", timeout=300, trust_env=False, transport=retrying
        )
        deployment = self._get("deployments/name/annotate-sharded/annotate-sharded")["id"]
        self._id = self._post(f"deployments/{deployment}/create_flow_run", parameters=parameters)["id"]
        self._rng = random.Random(0)

    def _get(self, path: str) -> Any:
        return self._api.get(path).raise_for_status().json()

    def _post(self, path: str, **content: Any) -> Any:
        return self._api.post(path, json=content).raise_for_status().json()

    @property
    def state(self) -> dict[str, Any]:
        """The state that it has now."""
        state: dict[str, Any] = self._get(f"flow_runs/{self._id}")["state"]
        return state

    @property
    def pid(self) -> int:
        """Its process."""
        return int(self._get(f"flow_runs/{self._id}")["infrastructure_pid"].rpartition(":")[2])

    def kill_one(self) -> bool:
        """Kills the process of a shard that runs; returns whether there was one."""
        those = {"parent_flow_run_id": {"any_": [self._id]}, "state": {"type": {"any_": ["RUNNING"]}}}
        pids = [run["infrastructure_pid"] for run in self._post("flow_runs/filter", flow_runs=those)]
        if not (known := [int(pid.rpartition(":")[2]) for pid in pids if pid]):
            return False
        with suppress(ProcessLookupError):
            os.kill(self._rng.choice(known), signal.SIGKILL)
            return True
        return False

    def shards(self) -> int:
        """How many runs of shards there were."""
        return int(self._post("flow_runs/count", flow_runs={"parent_flow_run_id": {"any_": [self._id]}}))

    def run_killing(self, kills: int) -> tuple[int, float]:
        """Waits for its end; returns how many runs were killed, and the peak MiB of the flow's own process."""
        killed, peak, at = 0, 0.0, time.monotonic()
        while (state := self.state)["type"] not in ENDED:
            if state["type"] == "RUNNING":
                peak = peak_mebibytes(self.pid) or peak
            if killed < kills and time.monotonic() > at and self.kill_one():
                killed += 1
                at = time.monotonic() + self._rng.uniform(0, 2 * BETWEEN_KILLS_SECONDS)
            time.sleep(0.5)
        print(f"{state['name']}: {state['message']}")
        return killed, peak


def deployed() -> None:
    """Makes blocks, work pool and deployments, as docs/deploy.md does."""
    subprocess.run([sys.executable, "-m", "deployments.setup"], check=True, capture_output=True)
    deploy = [PREFECT, "--no-prompt", "deploy", "--prefect-file", "deployments/prefect.yaml", "--all"]
    subprocess.run(deploy, check=True, capture_output=True)


def main(shards: int = 200, files: int = 1000, kills: int = 60, count: int = 20) -> None:
    """Prints what came of all shards."""
    with tempfile.TemporaryDirectory(prefix="sharded-", dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name)
        write_corpus(folder, files, count, left=count)
        with stand_in("--canned") as url, reporting_to_prefect("sharded-flow-") as home:
            deployed()
            worker = [
                PREFECT,
                "worker",
                "start",
                "--pool",
                "annotate",
                "--type",
                "process",
                "--limit",
                str(AT_ONCE + 1),
            ]
            environment = os.environ | {"PREFECT_WORKER_QUERY_SECONDS": "1"}
            with folder.joinpath("log").open("wb") as log:
                process = subprocess.Popen(worker, cwd=folder, env=environment, stdout=log, stderr=log)
            try:
                paths = {option: str(folder / path) for option, path in PATHS.items()}
                more = {"server": {"endpoints": [f"{url}/v1"]}, "max_concurrency": IN_FLIGHT, "shard_retries": 10}
                begun, flow = time.monotonic(), Flow({**paths, **more, "shards": shards})
                killed, peak = flow.run_killing(kills)
                seconds, runs = time.monotonic() - begun, flow.shards()
            finally:
                process.terminate()
                process.wait(60)
            database = sum(path.stat().st_size for path in home.rglob("prefect.db*")) / 2**20
        tell(
            folder,
            f"{shards} shards of {files} files, {files * count:,} images, {AT_ONCE} at once: {runs} runs, {killed} "
            f"killed; {seconds:.0f} s; the flow's process peaked at {peak:.0f} MiB, Prefect's database has "
            f"{database:.0f} MiB",
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
