"""`python -m flows.annotate`: the flow for people at a terminal.

Exit codes: 0 every image answered; 1 finished, with failures or failed chunks; 2 bad usage, input or server, nothing
written; 130 interrupted.
"""

import argparse
import asyncio
import glob
import inspect
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from flows.support.prefect_server import TemporaryPrefectServer, answers
from vllm_annotate.cli.interrupts import INTERRUPTED, Interrupts
from vllm_annotate.threads import run_to_end

if TYPE_CHECKING:
    from prefect.blocks.core import Block
    from prefect.client.schemas.objects import State

SECRET = re.compile(r"endpoints|environment|key|token|secret|password", re.IGNORECASE)
SERVER_FIELDS = (("endpoints",), ("model",), ("api_key",), ("start",))
SomeBlock = TypeVar("SomeBlock", bound="Block")
FINISHED, FINISHED_WITH_FAILURES, REFUSED = 0, 1, 2


def parser() -> argparse.ArgumentParser:
    """The options; all but the first six are the flow's parameters."""
    options = argparse.ArgumentParser(
        prog="python -m flows.annotate",
        description="Annotate the images of a JSONL or Parquet file with rationales and named boxes, through vLLM. "
        "Run it again to go on where it stopped.",
        epilog="Exit codes: 0 every image answered; 1 finished, with failures or failed chunks; 2 refused, nothing "
        "written; 130 interrupted. Beside OUTPUT lie OUTPUT.failures.jsonl, .report.json and the folder .work.",
    )
    add = options.add_argument
    add(
        "--input",
        required=True,
        help=".jsonl (also .gz, .zst) or .parquet with an image path and a caption in each row; like the next two a "
        "path, or a URL such as s3://bucket/captions.jsonl",
    )
    add("--image-root", required=True, help="folder that image paths are relative to")
    add("--output", required=True, help="the result, a .jsonl file; what it holds is not asked again")
    add("--api-base", action="append", metavar="URL", help="vLLM's base URL; several times for several servers "
        "(default: http://localhost:8000/v1; a key is read from VLLM_API_KEY)")  # fmt: skip
    add("--model-name", help="name of the served model (default: the one that is served)")
    add("--server", metavar="FILE|BLOCK", help="YAML file with fields of the server, or the name of a saved VLLMServer "
        "block: where vLLM answers, or how to start it")  # fmt: skip
    add("--recipe", metavar="FILE|BLOCK", help="YAML file with fields of the recipe, or the name of a saved "
        "AnnotationRecipe block (default: the built-in recipe)")  # fmt: skip
    add("--max-concurrency", type=_number_or_auto, metavar="N|auto", help="most requests in flight (default: auto, "
        "which finds what the server can use)")  # fmt: skip
    add("--chunk-size", type=int, help="images a chunk (default: 500)")
    add("--image-column", help="input column with the image path (default: image_path)")
    add("--caption-column", help='input column with the caption, "" for none (default: caption)')
    add("--shard", metavar="K/N", help="do the K-th of N shares of the input, on any machine that shares its files; "
        "python -m flows.merge_shards puts the answers together")  # fmt: skip
    add("--error-budget", type=float, help="share of a chunk's images that may fail, ten always, 0 for none "
        "(default: 0.5)")  # fmt: skip
    add("--server-wait-seconds", type=float, help="patience with a server that went away (default: 300)")
    add("--request-timeout-seconds", type=float, help="how long a request may take (default: 600)")
    add("--chunk-retries", type=int, help="tries more for a chunk that lost its server (default: 1)")
    return options


def _number_or_auto(text: str) -> int | str:
    try:
        return text if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor auto") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    options = parser().parse_args(arguments)
    interrupts = Interrupts()
    if arguments is None:  # it is the process's own command, not a call of somebody with signals of their own
        interrupts.install()
    try:
        return interrupts.done(_run(options, interrupts))
    except KeyboardInterrupt:  # also SIGTERM and SIGHUP
        print(f"interrupted: {_kept_answers(options)}; run the same command again to go on", file=sys.stderr)
        return interrupts.done(INTERRUPTED)


def _kept_answers(options: argparse.Namespace) -> str:
    """How many answers wait for the end of the run, and where."""
    from vllm_annotate.errors import UsageError
    from vllm_annotate.storage.locations import location
    from vllm_annotate.storage.workspace import Workspace

    try:
        output = location(options.output)
        if not isinstance(output, Path):
            return f"answers so far are kept beside {output} and on this machine"
        parts = Workspace.at(output, options.shard or "").parts
    except (UsageError, ValueError):
        return "nothing was written"
    answers = (path for path in parts.glob("*.jsonl") if not path.name.endswith(".failures.jsonl"))
    kept = sum(path.read_bytes().count(b"\n") for path in answers)
    return f"{kept} answers so far are kept in {parts}"


def _run(options: argparse.Namespace, interrupts: Interrupts) -> int:
    # No usage statistics and no look for news: a run talks to its servers and to nobody else. Read at import.
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    from prefect.settings import get_current_settings

    api_url = get_current_settings().api.url
    if not api_url:
        return _run_with_own_prefect_server(options, interrupts)
    if not answers(api_url):
        return _refuse(
            f"no Prefect server answers at PREFECT_API_URL {api_url}: start it (prefect server start), "
            "or unset the variable (prefect config unset PREFECT_API_URL) to run without one"
        )
    return _run_loop(options, interrupts, None)


def _run_with_own_prefect_server(options: argparse.Namespace, interrupts: Interrupts) -> int:
    from prefect.context import refresh_global_settings_context

    prefect_server = TemporaryPrefectServer()  # comes up while the rest is imported and checked
    os.environ["PREFECT_API_URL"] = prefect_server.api_url
    refresh_global_settings_context()
    return _run_loop(options, interrupts, prefect_server)


def _run_loop(
    options: argparse.Namespace, interrupts: Interrupts, prefect_server: TemporaryPrefectServer | None
) -> int:
    from prefect.exceptions import TerminationSignal

    async def annotate() -> int:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for the type checker: a coroutine runs in one
        with interrupts.cancelling(task):
            return await _annotate(options, prefect_server)

    try:
        return asyncio.run(annotate())
    except (TerminationSignal, asyncio.CancelledError):  # the first is Prefect's answer to SIGTERM while a flow runs
        raise KeyboardInterrupt from None


async def _annotate(options: argparse.Namespace, prefect_server: TemporaryPrefectServer | None) -> int:
    from prefect.exceptions import ParameterTypeError
    from pydantic import ValidationError

    from flows.annotate import annotate_images
    from vllm_annotate.errors import ServerFault, UsageError
    from vllm_annotate.storage.atomic import explained

    # Set up by that import: loggers that would say a second time, or to the wrong reader, what is said here.
    for chatty in ("prefect.engine", "prefect.flows", "EventsWorker", "APILogWorker"):
        logging.getLogger(chatty).setLevel(logging.CRITICAL)
    for console in logging.getLogger().handlers:
        console.addFilter(_is_news)
    try:
        parameters = annotate_images.validate_parameters(await _parameters(options, prefect_server))
        await _preflight(parameters)
    except (UsageError, ServerFault) as error:
        return _refuse(str(error))
    except OSError as error:
        return _refuse(explained(error, options.output))
    except ParameterTypeError as error:
        return _refuse(str(error).replace("Flow run received invalid parameters:", "bad parameters:"))
    except ValidationError as error:
        return _refuse("; ".join(_complaint(dict(problem)) for problem in error.errors()))
    if prefect_server is not None:
        try:
            await run_to_end(prefect_server.wait_until_ready, give_up=prefect_server.given_up.set)
        except RuntimeError as error:
            return _refuse(str(error))
        print(
            f"Prefect UI while this runs: {prefect_server.url}; afterwards: python -m prefect server start",
            file=sys.stderr,
        )
    state = await annotate_images(**parameters, return_state=True)
    return await _exit_code(state, options)


async def _parameters(options: argparse.Namespace, prefect_server: TemporaryPrefectServer | None) -> dict[str, Any]:
    """The flow's parameters, as far as they were given."""
    from blocks import AnnotationRecipe, VLLMServer
    from vllm_annotate.errors import UsageError

    given = {name: value for name, value in vars(options).items() if value is not None}
    endpoints, model = given.pop("api_base", None), given.pop("model_name", None)
    if "server" in given and (endpoints is not None or model is not None):
        raise UsageError("--server says it all: leave out --api-base and --model-name, or name them in it")
    shown = {name: value for name, value in (("endpoints", endpoints), ("model", model)) if value is not None}
    server = await _block("server", VLLMServer, given.pop("server", None), prefect_server)
    given["server"] = server if server is not None else VLLMServer(**shown)
    recipe = await _block("recipe", AnnotationRecipe, given.pop("recipe", None), prefect_server)
    given["recipe"] = recipe if recipe is not None else AnnotationRecipe()
    return given


async def _block(
    what: str, kind: type[SomeBlock], given: str | None, prefect_server: TemporaryPrefectServer | None
) -> SomeBlock | None:
    """A block from a YAML file or by its saved name; None where nothing was given."""
    from vllm_annotate.errors import UsageError
    from vllm_annotate.storage.yaml_fields import read_fields

    if given is None:
        return None
    if Path(given).suffix in (".yaml", ".yml", ".json") or Path(given).exists():
        return kind(**read_fields(Path(given), what, kind))
    if prefect_server is not None:
        await run_to_end(prefect_server.wait_until_ready, give_up=prefect_server.given_up.set)
    try:
        return await kind.aload(given)
    except ValueError:
        raise UsageError(
            f"{what} {given!r} is neither a file nor a saved {kind.__name__} block: save it in the Prefect UI or "
            f"with {kind.__name__}(...).save(name), or give a .yaml file"
        ) from None


def _complaint(problem: dict[str, Any]) -> str:
    """What pydantic found wrong with a field of the recipe or the server, in the words of the command line."""
    name = ".".join(map(str, problem["loc"]))
    of = "server" if problem["loc"][:1] in SERVER_FIELDS else "recipe"
    where = {"endpoints": "--api-base", "": of}.get(name, f"{of} field {name}")
    may_be_secret = SECRET.search(name) is not None
    value = "" if may_be_secret else f" {problem['input']!r:.60}"
    return f"{where}{value}: {problem['msg'].removeprefix('Value error, ')}"


def _is_news(record: logging.LogRecord) -> bool:
    """What a terminal shows. The UI has every state change of every chunk, and this command tells the end itself."""
    if record.name.startswith("prefect.task_runs") and record.levelno < logging.WARNING:
        return False
    return not record.getMessage().startswith(("Finished in state", "Crash detected!", "View at"))


async def _preflight(parameters: dict[str, Any]) -> None:
    """Opens the run and closes it: what can be refused is refused before a Prefect server is waited for."""
    from vllm_annotate.pipeline.session import check_run, open_run

    needed = inspect.signature(open_run).parameters
    given = {name: value for name, value in parameters.items() if name in needed}
    await check_run(lambda news: print(news, file=sys.stderr), **given)


async def _exit_code(state: "State[Any]", options: argparse.Namespace) -> int:
    from vllm_annotate.errors import ServerFault, UsageError
    from vllm_annotate.storage.locations import location
    from vllm_annotate.storage.workspace import Workspace

    result = await state.aresult(raise_on_failure=False)
    if isinstance(result, UsageError | ServerFault):
        return _refuse(str(result))
    print(state.message or state.name, file=sys.stderr)
    output = location(options.output)
    if isinstance(output, Path):
        output = Workspace.at(output, options.shard or "").output
        beside = sorted(path for path in output.parent.glob(f"{glob.escape(output.stem)}.*") if path.is_file())
        if beside:
            print("files:", *beside, file=sys.stderr)
    else:
        print("files:", output, "and beside it", file=sys.stderr)
    if state.is_completed() and isinstance(result, dict) and not result["images"]["failed"]:
        return FINISHED
    return FINISHED_WITH_FAILURES


def _refuse(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return REFUSED
