"""Many shards of many input files, at once and killed at random: nothing is lost, and nothing is answered twice.

`python -m benchmarks.many_shards [SHARDS FILES KILLS ROWS]`, by default 200 shards of 1,000 files of 20 rows, and 60
kills. The shards are the processes of a Slurm array, without Prefect, AT_ONCE at a time; one that was killed is started
again. Figures are of this machine, where all share the cores with the stand-in.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path

from benchmarks.folders import PROGRAM, write_corpus
from demo.processes import stand_in

AT_ONCE, IN_FLIGHT = 4, 4
LONGEST_SECONDS = 6.0  # until a kill: a shard takes about as long


class Array:
    """Processes that each do a shard; some are killed."""

    def __init__(self, folder: Path, url: str, shards: int, kills: int) -> None:
        self._folder, self._url = folder, url
        self._left = deque(f"{number}/{shards}" for number in range(1, shards + 1))
        self._rng = random.Random(0)
        self._kills = kills
        self.killed = self.started = 0

    def run(self) -> None:
        """Runs all shards to their end."""
        at_work: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
        while self._left or at_work:
            while self._left and len(at_work) < AT_ONCE:
                shard = self._left.popleft()
                at_work[shard] = self._start(shard), time.monotonic() + self._rng.uniform(1, LONGEST_SECONDS)
            for shard, (process, kill_at) in list(at_work.items()):
                if process.poll() is not None:
                    del at_work[shard]
                    self._check(shard, process.returncode)
                elif self.killed < self._kills and time.monotonic() > kill_at:
                    process.kill()
                    self.killed += 1
                    kill_at = float("inf")
                    at_work[shard] = process, kill_at
            time.sleep(0.05)

    def _start(self, shard: str) -> "subprocess.Popen[bytes]":
        self.started += 1
        paths = [f"--{option.replace('_', '-')}={self._folder / name}" for option, name in PATHS.items()]
        more = ["--api-base", f"{self._url}/v1", "--max-concurrency", str(IN_FLIGHT), "--without-prefect"]
        command = [str(PROGRAM), "annotate", *paths, *more, "--shard", shard]
        with self._folder.joinpath("log").open("ab") as log:
            return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)

    def _check(self, shard: str, code: int) -> None:
        if code == -9:
            self._left.append(shard)
        elif code:
            raise SystemExit(f"shard {shard}: exit {code}\n{self._folder.joinpath('log').read_text()[-3000:]}")


PATHS = {"input": "inputs", "image_root": "images", "output": "labeled"}


def tell(folder: Path, what: str) -> None:
    """Prints what was done, and how many images have no answer or two. Raises SystemExit if any has."""
    answered, asked = Counter(paths_in(folder / "labeled")), set(paths_in(folder / "inputs"))
    lost, twice = len(asked - set(answered)), sum(times - 1 for times in answered.values())
    print(f"{what}; {lost} lost, {twice} twice")
    if lost or twice:
        raise SystemExit(1)


def paths_in(folder: Path) -> Iterator[bytes]:
    """The image paths of all files of a folder."""
    for file in folder.glob("*.jsonl"):
        for line in file.read_bytes().splitlines():
            yield line.partition(b'"image_path":')[2].partition(b",")[0].strip(b' "}')


def main(shards: int = 200, files: int = 1000, kills: int = 60, count: int = 20) -> None:
    """Prints what came of all shards."""
    with tempfile.TemporaryDirectory(prefix="shards-", dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name)
        write_corpus(folder, files, count, left=count)
        with stand_in("--canned") as url:
            array, begun = Array(folder, url, shards, kills), time.monotonic()
            array.run()
            seconds, begun = time.monotonic() - begun, time.monotonic()
            subprocess.run([PROGRAM, "merge-shards", "--output", folder / "labeled"], check=True, capture_output=True)
        tell(
            folder,
            f"{shards} shards of {files} files, {files * count:,} images, {AT_ONCE} at once: {array.killed} kills; "
            f"{seconds:.0f} s, merged in {time.monotonic() - begun:.1f} s",
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
