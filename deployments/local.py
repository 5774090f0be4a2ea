"""`python -m deployments.local`: everything that the deployments need, on this machine, until Ctrl-C.

A Prefect server (unless PREFECT_API_URL names one that answers), what `deployments.setup` makes, the deployments, and a
worker. All of it listens on 127.0.0.1 alone. The server's database is the user's own: what was run stays.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from prefect.settings import get_current_settings

from flows.support.prefect_server import TemporaryPrefectServer, answers

PROJECT = Path(__file__).parent.parent
PREFECT_FILE = Path(__file__).with_name("prefect.yaml")  # also where the repository is not: in the wheel
PREFECT = str(Path(sys.executable).with_name("prefect"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs until it is interrupted."""
    options = argparse.ArgumentParser(prog="python -m deployments.local", description="Deploy all on this machine.")
    options.add_argument("--port", type=int, default=4200, help="of the Prefect server (default: 4200)")
    port = options.parse_args(arguments).port
    # SIGINT too: in the background of a script it is ignored, by the worker as well, which then could not be stopped.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    server = None
    try:
        api = get_current_settings().api.url or f"http://127.0.0.1:{port}/api"
        if not answers(api):
            server = TemporaryPrefectServer(port=port)
            server.wait_until_ready()
            api = server.api_url
        return serve_deployments(api)
    except KeyboardInterrupt:
        return 0
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        if server is not None:
            server.stop()


def serve_deployments(api: str) -> int:
    """Sets up and deploys, and runs a worker until it ends; returns its exit code."""
    environment = os.environ | {"PREFECT_API_URL": api}
    for command in (
        [sys.executable, "-m", "deployments.setup"],
        [PREFECT, "--no-prompt", "deploy", "--prefect-file", str(PREFECT_FILE), "--all"],
    ):
        done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stdout, done.stderr, sep="", file=sys.stderr)
            return done.returncode
    # In a session of its own: Ctrl-C is for this process, which then lets the worker end in order.
    worker = subprocess.Popen(
        [PREFECT, "worker", "start", "--pool", "annotate", "--type", "process"],
        cwd=PROJECT,
        env=environment,
        start_new_session=True,
    )
    print(f"Prefect UI: {api.removesuffix('/api')}/deployments (Ctrl-C ends everything)")
    print(f"In other terminals: export PREFECT_API_URL={api}", flush=True)
    try:
        return worker.wait()
    finally:
        worker.terminate()
        worker.wait()


if __name__ == "__main__":
    sys.exit(main())
