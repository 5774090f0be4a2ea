"""Managed servers, as real processes: found, started, watched, killed, restarted, stopped."""

import asyncio
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from stand_in.process import StandIn
from tests.conftest import ROOT
from tests.inference.test_client import body
from tests.serving.test_listeners import server_of_another_user
from vllm_annotate.errors import ServerUnavailable, UsageError
from vllm_annotate.inference.client import Inference
from vllm_annotate.recipe.image_budget import ImageBudget
from vllm_annotate.serving.keeper import Keeper, ServerDied, kept_servers, watching
from vllm_annotate.serving.launch import Launch
from vllm_annotate.serving.preflight import Replica, preflight
from vllm_annotate.serving.probe import served_models
from vllm_annotate.serving.record import ServerRecord, read_record, record_path

MakeModel = Callable[..., Path]


def replicas(launch: Launch) -> list[Replica]:
    found = preflight(launch, None, "")
    found.check()
    return found.replicas


def record_of(launch: Launch) -> ServerRecord:
    record = read_record(record_path(launch.port))
    assert record is not None
    return record


async def test_a_server_is_started_used_and_stopped(launch: Callable[..., Launch], tmp_path: Path) -> None:
    said: list[str] = []
    start = launch()
    async with kept_servers(replicas(start), tmp_path / "logs", said.append) as keepers:
        async with Inference(start.urls(), "none", max_concurrency=2) as inference, watching(keepers, inference.pool):
            assert await inference.check("qwen2.5-vl-7b") == "qwen2.5-vl-7b"
            assert (await inference.ask(body(model="qwen2.5-vl-7b"))).text
        assert len(record_of(start).group) == 3  # guardian, server, engine
    assert read_record(record_path(start.port)) is None
    assert served_models(start.urls()[0]) is None
    assert [line.split()[0] for line in said] == ["starting", f"{start.urls()[0]}", "stopped"]


async def test_replicas_are_separate_servers(launch: Callable[..., Launch], tmp_path: Path) -> None:
    start = launch(data_parallel_size=2)
    async with kept_servers(replicas(start), tmp_path / "logs", print):
        assert [served_models(url) for url in start.urls()] == [["qwen2.5-vl-7b"]] * 2


@pytest.mark.parametrize("victim", ["engine", "server", "guardian", "all"])
async def test_a_killed_server_is_restarted_and_no_request_fails(
    launch: Callable[..., Launch], tmp_path: Path, victim: str
) -> None:
    start = launch(environment={"STAND_IN_PREFILL_SECONDS": "0.2"})
    messages: list[str] = []
    async with (
        kept_servers(replicas(start), tmp_path / "logs", messages.append) as keepers,
        Inference(start.urls(), "none", max_concurrency=4, server_wait_seconds=1, warn=messages.append) as inference,
        watching(keepers, inference.pool),
    ):
        asking = [asyncio.create_task(inference.ask(body(f"{n}", "qwen2.5-vl-7b"))) for n in range(40)]
        await asyncio.sleep(0.5)
        record = record_of(start)
        guardian, server, engine = sorted(record.group)
        for pid in {"engine": [engine], "server": [server], "guardian": [guardian], "all": record.group}[victim]:
            os.kill(pid, signal.SIGKILL)
        answers = await asyncio.gather(*asking)
        assert len(answers) == 40
        if victim == "guardian":  # the server survives it, and must still be stopped
            assert keepers[0].starts == 1
        else:
            assert keepers[0].starts == 2
            assert any("restarting it (restart 1)" in line for line in messages)
            assert record_of(start).pid != record.pid


async def test_a_server_that_dies_too_often_is_given_up_with_its_cause(
    launch: Callable[..., Launch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = launch(max_restarts=1)
    async with (
        kept_servers(replicas(start), tmp_path / "logs", print) as keepers,
        Inference(start.urls(), "none", max_concurrency=4, server_wait_seconds=60) as inference,
        watching(keepers, inference.pool),
    ):
        monkeypatch.setenv("STAND_IN_DIES_SAYING", "RuntimeError: No CUDA GPUs are available")
        os.killpg(record_of(start).pid, signal.SIGKILL)
        with pytest.raises(ServerUnavailable, match=r"the server died 2 times.*No CUDA GPUs.*check nvidia-smi"):
            await inference.ask(body(model="qwen2.5-vl-7b"))


async def test_running_out_of_memory_lowers_the_concurrency(launch: Callable[..., Launch], tmp_path: Path) -> None:
    start = launch(environment={"STAND_IN_PREFILL_SECONDS": "0.1"})
    messages: list[str] = []
    async with (
        kept_servers(replicas(start), tmp_path / "logs", print) as keepers,
        Inference(start.urls(), "none", max_concurrency=8, warn=messages.append) as inference,
        watching(keepers, inference.pool),
    ):
        await asyncio.gather(*(inference.ask(body(f"{n}", "qwen2.5-vl-7b")) for n in range(16)))
        record = record_of(start)
        with record.log.open("a") as log:
            log.write("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.32 GiB.\n")
        os.killpg(record.pid, signal.SIGKILL)
        await asyncio.gather(*(inference.ask(body(f"{n}", "qwen2.5-vl-7b")) for n in range(16)))
        assert inference.pool.limit == 4
    assert any("limit lowered to 4 requests in flight" in line for line in messages)


@pytest.mark.parametrize("saying", ["ValueError: Cannot find the config file for awq", "nothing that is known"])
async def test_a_failed_start_reports_its_cause(
    launch: Callable[..., Launch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saying: str
) -> None:
    monkeypatch.setenv("STAND_IN_DIES_SAYING", saying)
    with pytest.raises(ServerDied, match=f"exited during startup: {saying}.*log: "):
        async with kept_servers(replicas(launch()), tmp_path / "logs", print):
            pass


async def test_no_message_about_a_failed_start_shows_a_secret_however_it_was_cut(
    launch: Callable[..., Launch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, key = "hf_Zq81xPvRw7LmN0tYb3", "sk-Kd02mVbQe9TuX5wA"
    monkeypatch.setenv("HF_TOKEN", token)
    saying = f"OSError: gated repo: {token[:13]}… was refused, {'x' * 380} {key}"
    start = launch(environment={"STAND_IN_DIES_SAYING": saying, "MY_KEY": key}, environment_from=["HF_TOKEN"])
    said: list[str] = []
    with pytest.raises(ServerDied, match=r"gated repo: \*\*\*… was refused") as caught:
        async with kept_servers(replicas(start), tmp_path / "logs", said.append):
            pass
    shown = "\n".join([str(caught.value), *said])
    assert not [secret[at : at + 6] for secret in (token, key) for at in range(12) if secret[at : at + 6] in shown]
    (log,) = (tmp_path / "logs").iterdir()
    assert log.stat().st_mode & 0o077 == 0, "others cannot read what the server itself writes"


async def test_a_start_that_takes_too_long_is_stopped(launch: Callable[..., Launch], tmp_path: Path) -> None:
    start = launch(start_timeout_seconds=1, environment={"STAND_IN_LOAD_SECONDS": "60"})
    with pytest.raises(ServerDied, match="was not ready after 1 s"):
        async with kept_servers(replicas(start), tmp_path / "logs", print):
            pass


async def test_a_port_that_serves_the_model_is_used_and_left_alone(
    launch: Callable[..., Launch], tmp_path: Path
) -> None:
    start = launch()
    said: list[str] = []
    with StandIn.started("--model", "qwen2.5-vl-7b") as other:
        start = launch(port=other.port)
        assert any("already serves" in note for note in preflight(start, None, "").notes)
        async with kept_servers(replicas(start), tmp_path / "logs", said.append):
            pass
        assert other.answers()
    assert "was started by somebody else" in said[0]


async def test_a_server_of_another_user_gets_neither_key_nor_images(
    launch: Callable[..., Launch], tmp_path: Path
) -> None:
    with server_of_another_user("qwen2.5-vl-7b") as (url, seen):
        found = preflight(launch(port=urlsplit(url).port), None, "sk-Zq81xPvRw7")
        with pytest.raises(UsageError, match=f"{url} is a server of user nobody.*set another port.*name the URL"):
            found.check()
        with pytest.raises(UsageError, match="is a server of user nobody"):
            async with kept_servers(found.replicas, tmp_path / "logs", print):
                pass
        assert seen.read_text() == ""


async def test_a_port_that_another_user_takes_while_the_server_loads_gets_no_key(
    launch: Callable[..., Launch], tmp_path: Path
) -> None:
    start = launch(environment={"STAND_IN_LOAD_SECONDS": "60"})
    found = preflight(start, None, "sk-Zq81xPvRw7")
    opening = Keeper(found.replicas[0], tmp_path / "logs", print)
    task = asyncio.create_task(opening.open())
    while read_record(record_path(start.port)) is None:
        await asyncio.sleep(0.05)
    record = record_of(start)
    with server_of_another_user("qwen2.5-vl-7b", start.port) as (url, seen):
        with pytest.raises(UsageError, match=f"{url} is a server of user nobody"):
            await task
        await opening.close()
        assert not record.group
        assert seen.read_text() == ""


def test_a_server_whose_user_cannot_be_seen_is_used_and_the_log_says_so(
    launch: Callable[..., Launch], tmp_path: Path
) -> None:
    with StandIn.started("--model", "qwen2.5-vl-7b") as other:
        start = json.dumps(launch(port=other.port).without_secrets())
        hidden = 'mount -t tmpfs none /proc/$$/net && exec "$@"'  # as in a sandbox, or behind a forwarded port
        command = ["unshare", "--mount", "sh", "-c", hidden, "sh", sys.executable, "-c", RUN_AND_WAIT]
        ran = subprocess.run(
            [*command, start, str(tmp_path / "logs"), "0"], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        if "Operation not permitted" in ran.stderr or "permission denied" in ran.stderr:
            pytest.skip("only root can hide /proc/net")
        assert ran.returncode == 0, ran.stderr
    assert "was started by somebody else (which user cannot be seen from here)" in ran.stdout


async def test_a_port_with_something_else_on_it_is_refused_with_a_free_one(
    launch: Callable[..., Launch], tmp_path: Path
) -> None:
    with StandIn.started("--model", "another") as other:
        found = preflight(launch(port=other.port), None, "")
        with pytest.raises(
            UsageError,
            match=rf"port {other.port} is in use by a server of another: set port to a free one, such as \d+",
        ):
            found.check()
        with pytest.raises(UsageError, match="is in use by a server of another"):
            async with kept_servers(found.replicas, tmp_path / "logs", print):
                pass


RUN_AND_WAIT = """
import asyncio, json, sys
from pathlib import Path
from vllm_annotate.serving.keeper import kept_servers
from vllm_annotate.serving.launch import Launch
from vllm_annotate.serving.preflight import preflight

async def main():
    found = preflight(Launch(**json.loads(sys.argv[1])), None, "")
    async with kept_servers(found.replicas, Path(sys.argv[2]), lambda line: print(line, flush=True)):
        print("up", flush=True)
        await asyncio.sleep(float(sys.argv[3]))

asyncio.run(main())
"""


def another_run(start: Launch, logs: Path, seconds: float = 3600) -> "subprocess.Popen[str]":
    """A run in a separate process, once its server is up."""
    run = subprocess.Popen(
        [sys.executable, "-c", RUN_AND_WAIT, json.dumps(start.without_secrets()), str(logs), str(seconds)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert run.stdout is not None
    for line in run.stdout:
        if line == "up\n":
            break
    return run


async def test_a_server_left_by_a_killed_run_is_found_and_used(launch: Callable[..., Launch], tmp_path: Path) -> None:
    start = launch()
    said: list[str] = []
    run = another_run(start, tmp_path / "logs")
    left = record_of(start)
    run.kill()
    run.communicate()
    async with kept_servers(replicas(start), tmp_path / "logs", said.append) as keepers:
        assert record_of(start) == left
        assert keepers[0].starts == 0
    assert "which an earlier run left running" in said[0]
    assert not left.group


async def test_a_server_left_by_a_killed_run_stops_by_itself(launch: Callable[..., Launch], tmp_path: Path) -> None:
    start = launch()
    run = another_run(start, tmp_path / "logs")
    left = record_of(start)
    run.kill()
    run.communicate()
    deadline = time.monotonic() + 20
    while left.group and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
    assert not left.group


async def test_a_leftover_server_with_other_settings_is_replaced(launch: Callable[..., Launch], tmp_path: Path) -> None:
    start = launch()
    run = another_run(start, tmp_path / "logs")
    left = record_of(start)
    run.kill()
    run.communicate()
    other = preflight(start, "another-name", "").replicas
    async with kept_servers(other, tmp_path / "logs", print):
        assert served_models(start.urls()[0]) == ["another-name"]
        assert not left.group


async def test_a_leftover_server_with_another_image_budget_is_used(
    launch: Callable[..., Launch], tmp_path: Path
) -> None:
    start = launch()
    run = another_run(start, tmp_path / "logs")
    left = record_of(start)
    run.kill()
    run.communicate()
    found = preflight(start, None, "", budget=ImageBudget(min_pixels=100_352, max_pixels=1_003_520))
    assert "--mm-processor-kwargs" in found.replicas[0].command
    assert any("it will be used" in note for note in found.notes)
    async with kept_servers(found.replicas, tmp_path / "logs", print) as keepers:
        assert record_of(start) == left
        assert keepers[0].starts == 0


async def test_the_last_of_two_runs_stops_the_server(launch: Callable[..., Launch], tmp_path: Path) -> None:
    start = launch()
    said: list[str] = []
    async with kept_servers(replicas(start), tmp_path / "logs", said.append):
        other = another_run(start, tmp_path / "logs", 2)
    assert "stays up because another run uses it" in said[-1]
    assert served_models(start.urls()[0]) == ["qwen2.5-vl-7b"]
    await asyncio.to_thread(other.communicate)
    assert served_models(start.urls()[0]) is None


async def test_a_server_that_is_to_be_kept_outlives_the_run(launch: Callable[..., Launch], tmp_path: Path) -> None:
    start = launch(keep=True, linger_seconds=1)
    async with kept_servers(replicas(start), tmp_path / "logs", print):
        pass
    await asyncio.sleep(3)  # longer than the guardian would linger
    assert served_models(start.urls()[0]) == ["qwen2.5-vl-7b"]
    record_of(start).end()


async def test_a_cancelled_start_leaves_nothing(launch: Callable[..., Launch], tmp_path: Path) -> None:
    start = launch(environment={"STAND_IN_LOAD_SECONDS": "60"})

    async def run() -> None:
        async with kept_servers(replicas(start), tmp_path / "logs", print):
            pass

    task = asyncio.create_task(run())
    while read_record(record_path(start.port)) is None:
        await asyncio.sleep(0.05)
    left = record_of(start)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not left.group


async def test_a_start_that_is_cancelled_at_once_leaves_nothing(launch: Callable[..., Launch], tmp_path: Path) -> None:
    start = launch(environment={"STAND_IN_LOAD_SECONDS": "60"})
    keeper = Keeper(replicas(start)[0], tmp_path / "logs", print)
    task = asyncio.create_task(keeper.open())
    while not keeper.starts:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await keeper.close()
    assert read_record(record_path(start.port)) is None


@pytest.mark.long  # its guardian gives a server 40 s to end
async def test_a_server_that_hangs_is_ended_and_started_again(
    launch: Callable[..., Launch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_annotate.serving.keeper.UNRESPONSIVE_SECONDS", 3)
    start = launch()
    async with (
        kept_servers(replicas(start), tmp_path / "logs", print) as keepers,
        Inference(
            start.urls(), "none", max_concurrency=2, server_wait_seconds=1, request_timeout_seconds=2
        ) as inference,
        watching(keepers, inference.pool),
    ):
        record = record_of(start)
        for pid in record.group:
            if pid != record.pid:
                os.kill(pid, signal.SIGSTOP)
        assert (await inference.ask(body(model="qwen2.5-vl-7b"))).text
        assert keepers[0].starts == 2
        assert not record.group


async def test_a_server_with_other_settings_in_use_is_refused(launch: Callable[..., Launch], tmp_path: Path) -> None:
    start = launch(keep=True)
    async with kept_servers(replicas(start), tmp_path / "logs", print):
        pass
    other = launch(max_model_len=4096)
    with pytest.raises(UsageError, match=r"server with other settings and keep .* stop it with: kill \d+"):
        async with kept_servers(replicas(other), tmp_path / "logs", print):
            pass
    assert served_models(start.urls()[0]) == ["qwen2.5-vl-7b"]
    async with kept_servers(replicas(launch(keep=True)), tmp_path / "logs", print) as keepers:
        assert keepers[0].starts == 0
    record_of(start).end()


async def test_a_missing_log_folder_does_not_stop_a_healthy_run(launch: Callable[..., Launch], tmp_path: Path) -> None:
    start = launch(max_restarts=1)
    async with (
        kept_servers(replicas(start), tmp_path / "logs", print) as keepers,
        Inference(start.urls(), "none", max_concurrency=2) as inference,
        watching(keepers, inference.pool),
    ):
        shutil.rmtree(tmp_path / "logs")
        (tmp_path / "logs").write_text("a file now")
        os.killpg(record_of(start).pid, signal.SIGKILL)
        with pytest.raises(ServerUnavailable, match="the server died 2 times"):
            await inference.ask(body(model="qwen2.5-vl-7b"))


HOLD = """
import sys, time
from pathlib import Path
from vllm_annotate.storage.lock import locked

with locked(Path(sys.argv[1])):
    with Path(sys.argv[1]).open("a") as file:
        file.write(sys.argv[2])
    print("held", flush=True)
    time.sleep(3600)
"""


@contextmanager
def starting_run(start: Launch, gives_up: str = "gives up after 600 s\n") -> Iterator["subprocess.Popen[str]"]:
    """A process that starts a server, and does not get any further."""
    lock = record_path(start.port).with_suffix(".starting")
    command = [sys.executable, "-c", HOLD, str(lock), gives_up]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "held\n"
        yield run
        run.kill()


async def test_a_run_says_for_whom_it_waits_and_takes_over_at_once_when_that_dies(
    launch: Callable[..., Launch], tmp_path: Path
) -> None:
    start = launch()
    said: list[str] = []
    with starting_run(start) as other:
        keeper = Keeper(replicas(start)[0], tmp_path / "logs", said.append)
        opening = asyncio.create_task(keeper.open())
        while not said:
            await asyncio.sleep(0.05)
        assert said[0].startswith(f"waiting for another run (process {other.pid} on ")
        assert "since " in said[0]
        assert f"gives up after 600 s) that is starting {start.urls()[0]}" in said[0]
        await asyncio.sleep(2)
        assert len(said) == 1, "it is not repeated all the time"
        other.kill()
        killed = time.monotonic()
        while len(said) == 1:
            await asyncio.sleep(0.05)
        assert time.monotonic() - killed < 5
        assert said[1].startswith("starting ")
        await opening
        await keeper.close()


async def test_a_run_that_waits_for_a_start_names_its_server_and_log(
    launch: Callable[..., Launch], tmp_path: Path
) -> None:
    start = launch(environment={"STAND_IN_LOAD_SECONDS": "3"})
    said: list[str] = []
    first = Keeper(replicas(start)[0], tmp_path / "logs", print)
    opening = asyncio.create_task(first.open())
    while read_record(record_path(start.port)) is None:
        await asyncio.sleep(0.05)
    record = record_of(start)
    async with kept_servers(replicas(start), tmp_path / "logs", said.append) as (second,):
        assert f"(process {record.pid}; log: {record.log})" in said[0]
        assert second.starts == 0
        await opening
        await first.close()


@pytest.mark.long  # it allows the other half a minute more than that allows itself
async def test_a_run_that_hangs_while_it_starts_a_server_is_not_waited_for_without_end(
    launch: Callable[..., Launch], tmp_path: Path
) -> None:
    said: list[str] = []
    with (
        starting_run(launch(), "gives up after 1 s\n") as other,
        pytest.raises(ServerUnavailable, match=rf"waited 31 s for another run \(process {other.pid} on .*: end that"),
    ):
        async with kept_servers(replicas(launch()), tmp_path / "logs", said.append):
            pass
    assert [line.rpartition(", for ")[2] for line in said[1:]] == ["10 s so far", "30 s so far"]


async def test_a_server_that_is_being_stopped_is_waited_for_and_said_so(
    launch: Callable[..., Launch], tmp_path: Path
) -> None:
    start = launch()
    said: list[str] = []
    with record_path(start.port).with_suffix(".users").open("a") as stopping:
        fcntl.flock(stopping, fcntl.LOCK_EX)
        keeper = Keeper(replicas(start)[0], tmp_path / "logs", said.append)
        opening = asyncio.create_task(keeper.open())
        while not said:
            await asyncio.sleep(0.05)
    await opening
    await keeper.close()
    assert said[0] == f"waiting for the server at {start.urls()[0]} to stop"
    assert said[1].startswith("starting ")


async def test_a_record_that_is_not_valid_is_said_and_replaced(launch: Callable[..., Launch], tmp_path: Path) -> None:
    start = launch()
    said: list[str] = []
    record_path(start.port).write_text('{"pid": Infinity, "started": NaN')
    async with kept_servers(replicas(start), tmp_path / "logs", said.append):
        assert record_of(start).is_alive
    assert said[0].startswith("ignoring ")
    assert said[1].startswith("starting ")
