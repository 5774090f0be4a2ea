"""Where a process begins: Ctrl-C is quiet while the rest is being imported."""

import signal
import sys


def start(*command: str) -> None:
    """Runs a command as this process: the words in `command`, then the process's own arguments."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `main` handles it, it would end in a traceback
    from vllm_annotate.cli.streams import set_up_streams

    output = set_up_streams()
    from vllm_annotate.cli.main import main

    code = main([*command, *sys.argv[1:]], own_process=True)
    output.flush()
    if output.fault is not None and not isinstance(output.fault, BrokenPipeError):
        print(f"error: standard output cannot be written: {output.fault.strerror}; redirect it", file=sys.stderr)
        code = 2
    sys.exit(code)
