"""How a command begins and ends, whatever it is: Ctrl-C is quiet while modules are still being imported."""

import importlib
import signal
import sys


def start(module: str) -> None:
    """Runs `main` of a module as the command of this process."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until all is imported, Ctrl-C would end in a traceback
    main = importlib.import_module(module).main
    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
