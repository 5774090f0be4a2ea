"""The order in which a run with a Prefect server of its own starts: what takes long, it does at the same time."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from stand_in.process import StandIn
from tests.conftest import ROOT, Job

# Says what was imported when the process of the Prefect server was started.
PROGRAM = """
import sys

def audit(event, arguments):
    if event == "subprocess.Popen" and "server_launcher.py" in str(arguments[1]):
        print(*sys.modules)

sys.addaudithook(audit)
from vllm_annotate.cli.start import start
start("annotate")
"""
TAKES_LONG = {"prefect", "httpx", "rich", "polars", "openai", "aiohttp", "PIL", "fastapi", "jinja2", "graphviz"}


def test_the_server_starts_before_the_imports_and_the_flow_after_them(
    make_job: Callable[..., Job], stand_in: StandIn, tmp_path: Path
) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment["PREFECT_HOME"] = str(tmp_path / "home")
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", PROGRAM, *make_job(3).arguments(stand_in.url)],
        cwd=ROOT, env=environment, text=True, capture_output=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (before,) = done.stdout.splitlines()[:1]
    assert not TAKES_LONG & {name.partition(".")[0] for name in before.split()}
    waiting, ready, _ = re.split("Prefect UI during this run|Model stand-in", done.stderr)
    assert imports(waiting) >= TAKES_LONG
    assert ready.count("import time:") <= 30, "nearly 200 when a flow run imports what it needs"


def imports(log: str) -> set[str]:
    """The packages of which modules were imported, by the log of `-X importtime`."""
    return {name.partition(".")[0] for name in re.findall(r"^import time:.*\| +(\S+)$", log, re.MULTILINE)}
