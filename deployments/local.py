"""`python -m deployments.local`: runs everything that the deployments need on this machine, until Ctrl-C.

Starts a Prefect server (unless PREFECT_API_URL points to one), sets it up with `deployments.setup`, deploys the flows
and runs a worker. All of it listens on 127.0.0.1 only. The server uses your Prefect database: the history stays.
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
PREFECT_FILE = Path(__file__).with_name("prefect.yaml")  # also in the wheel
PREFECT = str(Path(sys.executable).with_name("prefect"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs until interrupted; returns the exit code."""
    options = argparse.ArgumentParser(prog="python -m deployments.local", description="Deploy and run everything here.")
    options.add_argument("--port", type=int, default=4200, help="port of the Prefect server (default: 4200)")
    port = options.parse_args(arguments).port
    # A background process of a script ignores SIGINT, and its worker would inherit that and could not be stopped.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    server = None
    try:
        api = get_current_settings().api.url or f"http://127.0.0.1:{port}/api"
        if not answers(api):
            server = TemporaryPrefectServer(port=port)
            server.wait_until_ready()
            if server.home.note:
                print(server.home.note, file=sys.stderr)
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
    """Sets up the server, deploys, and runs a worker until it exits; returns its exit code."""
    environment = os.environ | {"PREFECT_API_URL": api}
    for command in (
        [sys.executable, "-m", "deployments.setup"],
        [PREFECT, "--no-prompt", "deploy", "--prefect-file", str(PREFECT_FILE), "--all"],
    ):
        done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stdout, done.stderr, sep="", file=sys.stderr)
            return done.returncode
    # In its own session: Ctrl-C reaches this process only, which then stops the worker cleanly.
    worker = subprocess.Popen(
        [PREFECT, "worker", "start", "--pool", "annotate", "--type", "process"],
        cwd=PROJECT,
        env=environment,
        start_new_session=True,
    )
    print(f"Prefect UI: {api.removesuffix('/api')}/deployments (Ctrl-C stops everything)")
    print(f"In other terminals: export PREFECT_API_URL={api}", flush=True)
    try:
        return worker.wait()
    finally:
        worker.terminate()
        worker.wait()


if __name__ == "__main__":
    sys.exit(main())
