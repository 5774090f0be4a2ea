"""`vllm-annotate COMMAND`: which commands there are, and how a process runs one."""

import importlib
import os
import shutil
from collections.abc import Iterable, Sequence
from typing import Any

from cyclopts import App, CycloptsError

from vllm_annotate.cli.console import Console
from vllm_annotate.cli.interrupts import INTERRUPTED, Interrupts
from vllm_annotate.cli.options import COMMAND, last_of_each
from vllm_annotate.errors import ServerFault, UsageError

COMPLETION = "--install-completion"
NARROWEST, WIDEST = 40, 500  # columns of a terminal; help in 1 or 2 columns would take all memory
EXIT_CODES = {
    0: "every image has an answer",
    1: "finished, with failures or failed chunks",
    2: "refused: bad usage, input or server; no row written",
    130: "interrupted",
}
NO_MEMORY = (
    "this machine allows no more memory or threads: raise the limits of this process (ulimit -v, ulimit -u, or those "
    "of its container), or end other programs, and run again; all answers are saved"
)
COMMANDS = {  # name → its module, and what it does. Modules are imported when they are needed: help comes at once
    "annotate": ("annotate", "Annotate the images of a file; run it again to resume."),
    "pilot": ("pilot", "Annotate a random sample, and estimate what the rest will take."),
    "retry": ("retry", "Retry the images in the failures file of an output."),
    "merge-shards": ("merge_shards", "Merge the shards of an output, in the order of the input."),
    "reparse": ("reparse", "Re-parse the stored answers of an output, without calling the model."),
    "export": ("export", "Write an output in the format of a trainer or a tool for labelling."),
    "review": ("review", "Have people correct the most doubtful answers in Label Studio."),
    "report": ("report", "Rebuild report.html of an output."),
    "evaluate": ("evaluate", "Score the boxes of an output against a truth."),
    "compare": ("compare", "Compare two outputs of one input."),
    "audit": ("audit", "Ask for a sample again, and estimate how far the answers can be trusted."),
    "check-server": ("check_server", "Check whether vLLM would start with these settings, without starting it."),
    "config": ("config", "Write, change or show a job file."),
}


def main(arguments: Sequence[str], *, own_process: bool = False) -> int:
    """Runs a command and returns its exit code; with `own_process`, handles signals."""
    _set_columns()
    name = arguments[0] if arguments else ""
    needed = [name] if name in COMMANDS else COMMANDS if name == COMPLETION else []
    app = app_with(needed)
    if name in COMMANDS:
        arguments = [name, *last_of_each(arguments[1:], app[name])]
    try:
        function, bound, _ = app.parse_args(list(arguments), exit_on_error=False, print_error=False)
    except CycloptsError as error:
        return Console().refuse(misused(name, error))
    if function.__name__ == COMMAND:
        return run(module_of(name), dict(bound.kwargs), own_process=own_process)
    function(*bound.args, **bound.kwargs)  # help, version or completion
    return 0


def run(module: Any, given: dict[str, Any], *, own_process: bool) -> int:
    """Runs a command's module with the given options; prints why it was refused or interrupted."""
    interrupts, console = Interrupts(), Console(as_json=bool(given.get("log_json")))
    if own_process:
        interrupts.install()
    try:
        return interrupts.done(module.run(given, console, interrupts))
    except (UsageError, ServerFault) as error:
        return interrupts.done(console.refuse(str(error)))
    except OSError as error:
        from vllm_annotate.storage.disk_errors import explained

        return interrupts.done(console.refuse(explained(error, str(given.get("output") or given.get("job")))))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "start new thread" not in str(error):
            raise
        return interrupts.done(console.refuse(NO_MEMORY))
    except KeyboardInterrupt:  # also SIGTERM and SIGHUP
        console.say(f"interrupted: {module.interrupted(given)}")
        return interrupts.done(INTERRUPTED)


def app_with(names: Iterable[str]) -> App:
    """The app with all commands, but options only for these: other modules need not be imported."""
    app = App(
        name="vllm-annotate",
        version=own_version,
        help="Write a rationale and named boxes for every captioned image, with a vision-language model on vLLM.",
        help_format="plaintext",
        help_epilogue="vllm-annotate COMMAND --help shows the options of a command.",
    )
    for name, (_, text) in COMMANDS.items():
        app.command(module_of(name).app() if name in names else App(name=name, help=text, version_flags=[]))
    app.register_install_completion_command(COMPLETION, help="Install completion for this shell.")
    return app


def _set_columns() -> None:
    given = os.environ.get("COLUMNS", "")
    columns = int(given[:5]) if given.isdecimal() else shutil.get_terminal_size().columns
    if given or not NARROWEST <= columns <= WIDEST:
        os.environ["COLUMNS"] = str(max(NARROWEST, min(columns, WIDEST)))


def own_version() -> str:
    """Returns the version, read on demand as that takes 40 ms."""
    from vllm_annotate.version import VERSION

    return VERSION


def module_of(name: str) -> Any:
    """The module of a command."""
    return importlib.import_module(f"vllm_annotate.cli.{COMMANDS[name][0]}")


def misused(name: str, error: CycloptsError) -> str:
    """The error message for an invalid command line."""
    if name not in COMMANDS:
        return f"{name!r} is not a command: use one of {', '.join(COMMANDS)}"
    message = " ".join(str(error).replace(f'Command "{name}" parameter', "option").split())
    return f"{message} See vllm-annotate {name} --help"
