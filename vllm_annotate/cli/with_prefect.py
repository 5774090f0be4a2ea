"""Runs a command's work as a Prefect flow, on the server of PREFECT_API_URL or on a temporary one.

The only module of the library that imports Prefect; imported on demand.
"""

import asyncio
import gc
import importlib
import logging
import os
import re
import warnings
from collections.abc import Coroutine
from contextlib import nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from vllm_annotate.cli.console import Console
from vllm_annotate.cli.interrupts import Interrupts
from vllm_annotate.cli.jobs import job_of, saved_blocks
from vllm_annotate.cli.work import Work, end
from vllm_annotate.errors import ServerFault, UsageError
from vllm_annotate.job import Job
from vllm_annotate.own_packages import check_own_packages

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

    from flows.support.prefect_server import TemporaryPrefectServer

RESULT = re.compile(r"\d+ images: ")  # what `report.summary.sentence` begins with
SETTINGS_REMEDY = "correct the PREFECT_… variable or the file that sets it"
NOT_RECORDED = (
    "Prefect's server stopped answering: its record of this run is incomplete; the files of the run are whole"
)
NOT_RUN = "Prefect failed before the run came to its end"
NOT_RUN_REMEDY = (
    "see whether its server still runs, then run the same command again, or add --without-prefect; answers so far are "
    "saved"
)
IMPORTED_BY_A_RUN = (  # when it begins; a quarter of a second
    "prefect.flow_engine", "prefect.task_engine", "prefect.utilities.visualization", "fastapi.encoders",
)  # fmt: skip
CHATTY = (
    "prefect.engine", "prefect.flows", "EventsWorker", "APILogWorker", "prefect.events.clients",
    "prefect._internal.concurrency",
)  # fmt: skip


def run_with_prefect(work: Work, console: Console, interrupts: Interrupts) -> int:
    """Runs the work as a flow; returns the exit code. Raises UsageError, ServerFault and OSError."""
    check_own_packages()
    if not saved_blocks(work.fields):
        job_of(work.fields)  # refuse invalid fields before starting anything
    # A run talks to its own servers only: no usage statistics, no version checks. Prefect reads these at import.
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    gc.disable()  # while Prefect is imported: a sixth of that time went into looking for garbage
    try:
        own = _checked_server(interrupts)
    except UsageError as error:
        raise UsageError(f"{error}, or add --without-prefect") from None
    finally:
        gc.enable()
    from prefect.exceptions import TerminationSignal

    try:
        return interrupts.run(_run(work, console, interrupts, own))
    except (TerminationSignal, asyncio.CancelledError):  # Prefect raises the first on SIGTERM during a flow
        raise KeyboardInterrupt from None


def _checked_server(interrupts: Interrupts) -> "TemporaryPrefectServer | None":
    """A temporary server that starts, or None if the one of PREFECT_API_URL can be used. Raises UsageError."""
    from flows.support.server_process import ServerProcess

    # It starts before Prefect is imported, which takes a second, unless it is clear that it is not needed.
    with nullcontext() if os.environ.get("PREFECT_API_URL") else ServerProcess() as process:
        if not _given_api():
            from flows.support.own_server import start_own_server

            return start_own_server(process)
    from flows.support.prefect_api import check_api

    try:
        interrupts.run(check_api())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    return None


def _given_api() -> str | None:
    """PREFECT_API_URL, also from a profile. Raises UsageError if Prefect cannot read its settings."""
    logging.disable()  # Prefect logs pydantic's errors, with the values
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Failed to create the Prefect home")  # said with a remedy later
            from prefect.settings import get_current_settings

            return get_current_settings().api.url
    except ValidationError as error:
        found = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_input=False))
        raise UsageError(f"Prefect refuses its {error.title}: {'; '.join(found)}; {SETTINGS_REMEDY}") from None
    except (ValueError, OSError) as error:
        raise UsageError(f"Prefect cannot read its settings: {error!s:.300}; {SETTINGS_REMEDY}") from None
    finally:
        logging.disable(logging.NOTSET)


async def _run(work: Work, console: Console, interrupts: Interrupts, own: "TemporaryPrefectServer | None") -> int:
    from vllm_annotate.pipeline.session import check_run

    job = await _job(work, console, own)
    try:
        if work.kinds is None:
            await check_run(job, console.say)
    except (UsageError, ServerFault, OSError):
        if own is not None:
            own.given_up.set()
        raise
    _import_flows()
    await _wait_until_ready(own, console)
    if own is not None:
        after = "" if own.home.note else "; afterwards: prefect server start"
        console.say(f"Prefect UI during this run: {own.url}{after}")
    code, is_recorded = await _recorded(_flow(job, work.kinds, console), job, console)
    from flows.support.outcome import all_sent

    interrupts.done(code)
    if not (is_recorded and await all_sent()):
        console.say(NOT_RECORDED, logging.WARNING)
        if own is not None:
            own.given_up.set()
            own.stop()
        interrupts.leave(code)
    return code


def _import_flows() -> None:
    """Imports what a flow run needs, while its server starts: else its first request would wait for it."""
    importlib.import_module("flows.annotate")
    importlib.import_module("flows.retry")
    for name in IMPORTED_BY_A_RUN:
        with suppress(ImportError):  # of another version of Prefect
            importlib.import_module(name)


async def _recorded(flow: "Coroutine[Any, Any, State[Any]]", job: Job, console: Console) -> tuple[int, bool]:
    """Runs a flow; returns the exit code, and whether Prefect recorded the run."""
    from flows.support.outcome import recorded

    try:
        state, is_recorded = await recorded(flow)
        return await _end(console, job, state), is_recorded
    except Exception as error:  # a flow returns its own failures: this is any error of Prefect or of its client
        return console.refuse(f"{NOT_RUN} ({error!r:.200}): {NOT_RUN_REMEDY}"), False


async def _job(work: Work, console: Console, own: "TemporaryPrefectServer | None") -> Job:
    """The job of the work, with its saved blocks. Raises UsageError."""
    from blocks import AnnotationRecipe, VLLMServer

    fields = dict(work.fields)
    for name, saved in saved_blocks(fields).items():
        await _wait_until_ready(own, console)
        fields[name] = await _block(name, saved)
    return job_of(fields, VLLMServer, AnnotationRecipe)


async def _end(console: Console, job: Job, state: "State[Any]") -> int:
    """Prints how a flow ended; returns the exit code."""
    result = await state.aresult(raise_on_failure=False)
    if isinstance(result, UsageError | ServerFault):
        return console.refuse(str(result))
    console.say(state.message or str(state.name))
    answered = isinstance(result, dict) and not result["images"]["failed"]
    return end(console, job, finished=state.is_completed() and (answered or result is None))


async def _flow(job: Job, kinds: list[str] | None, console: Console) -> "State[Any]":
    """Runs the flow that annotates a job or, given kinds, retries its failures."""
    from flows.annotate import annotate_images
    from flows.retry import retry_failures

    _quiet(console)
    parameters = {name: getattr(job, name) for name in Job.model_fields}
    if kinds is None:
        return await annotate_images(**parameters, return_state=True)
    taken = retry_failures.parameters.properties
    of_retry = {name: value for name, value in parameters.items() if name in taken}
    return await retry_failures(**of_retry, kinds=kinds, return_state=True)


async def _wait_until_ready(own: "TemporaryPrefectServer | None", console: Console) -> None:
    """Waits for the temporary server, if there is one. Raises UsageError."""
    from flows.support.own_server import until_ready

    if own is not None:
        await until_ready(own, partial(console.say, level=logging.WARNING))


async def _block(what: str, name: str) -> Any:
    """Loads a saved block. Raises UsageError if it does not exist."""
    from blocks import AnnotationRecipe, VLLMServer

    kind: Any = {"server": VLLMServer, "recipe": AnnotationRecipe}[what]
    try:
        return await kind.aload(name)
    except ValueError:
        raise UsageError(
            f"{what} {name!r} is neither a file nor a saved {kind.__name__} block: save it in the Prefect UI or "
            f"with {kind.__name__}(...).save(name), or use a .yaml file"
        ) from None


def _quiet(console: Console) -> None:
    """Hides log records that this command repeats, or that belong in the UI."""
    logging.raiseExceptions = False  # of Prefect's handlers: an API that is gone would fill the terminal
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    loggers = [logging.getLogger(), *map(logging.getLogger, ("prefect", "prefect.flow_runs", "prefect.task_runs"))]
    for logger in loggers:
        for handler in list(logger.handlers):
            if type(handler).__name__ != "PrefectConsoleHandler":
                continue
            if console.as_json:
                logger.removeHandler(handler)
                handler = console.handler()
                logger.addHandler(handler)
            handler.addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether the terminal shows a record: not state changes of chunks, nor what the command says at the end itself."""
    if record.name.startswith("prefect.task_runs") and record.levelno < logging.WARNING:
        return False
    if record.name.startswith("prefect.flow_runs") and record.levelno >= logging.ERROR:
        return False
    message = record.getMessage()
    return not (message.startswith(("Finished in state", "Crash detected!", "View at")) or RESULT.match(message))
