"""`vllm-annotate COMMAND`: which commands there are, and how a process runs one."""

import importlib
from collections.abc import Iterable, Sequence
from typing import Any

from cyclopts import App, CycloptsError

from vllm_annotate.cli.console import Console
from vllm_annotate.cli.interrupts import INTERRUPTED, Interrupts
from vllm_annotate.cli.options import COMMAND, last_of_each
from vllm_annotate.errors import ServerFault, UsageError

COMPLETION = "--install-completion"
EXIT_CODES = {
    0: "every image has an answer",
    1: "finished, with failures or failed chunks",
    2: "refused: bad usage, input or server; no row written",
    130: "interrupted",
}
COMMANDS = {  # name → its module, and what it does. Modules are imported when they are needed: help comes at once
    "annotate": ("annotate", "Annotate the images of a file; run it again to resume."),
    "retry": ("retry", "Retry the images in the failures file of an output."),
    "merge-shards": ("merge_shards", "Merge the shards of an output, in the order of the input."),
    "reparse": ("reparse", "Parse the stored answers of an output again, without the model."),
    "report": ("report", "Remake report.html of an output."),
    "check-server": ("check_server", "Check whether vLLM would start with these settings; start nothing."),
    "config": ("config", "Write, change or show a job file."),
}


def main(arguments: Sequence[str], *, own_process: bool = False) -> int:
    """Runs a command and returns its exit code; signals are handled if it is the whole process that runs it."""
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
    """Runs a command's module with the options that were given, and says why it was refused or interrupted."""
    interrupts, console = Interrupts(), Console(as_json=bool(given.get("log_json")))
    if own_process:
        interrupts.install()
    try:
        return interrupts.done(module.run(given, console, interrupts))
    except (UsageError, ServerFault) as error:
        return interrupts.done(console.refuse(str(error)))
    except OSError as error:
        from vllm_annotate.storage.atomic import explained

        return interrupts.done(console.refuse(explained(error, str(given.get("output") or given.get("job")))))
    except KeyboardInterrupt:  # also SIGTERM and SIGHUP
        console.say(f"interrupted: {module.interrupted(given)}")
        return interrupts.done(INTERRUPTED)


def app_with(names: Iterable[str]) -> App:
    """All commands, but options of these alone: help comes at once where their modules need not be imported."""
    app = App(
        name="vllm-annotate",
        version=own_version,
        help="Rationales and named boxes for captioned images, written by a vision-language model that vLLM serves.",
        help_format="plaintext",
        help_epilogue="vllm-annotate COMMAND --help shows the options of a command.",
    )
    for name, (_, text) in COMMANDS.items():
        app.command(module_of(name).app() if name in names else App(name=name, help=text, version_flags=[]))
    app.register_install_completion_command(COMPLETION, help="Install completion for this shell.")
    return app


def own_version() -> str:
    """Read when it is asked for: it takes 40 ms."""
    from vllm_annotate.version import VERSION

    return VERSION


def module_of(name: str) -> Any:
    """The module of a command."""
    return importlib.import_module(f"vllm_annotate.cli.{COMMANDS[name][0]}")


def misused(name: str, error: CycloptsError) -> str:
    """What is wrong with a command line."""
    if name not in COMMANDS:
        return f"{name!r} is not a command: write one of {', '.join(COMMANDS)}"
    message = " ".join(str(error).replace(f'Command "{name}" parameter', "option").split())
    return f"{message} See vllm-annotate {name} --help"
