"""The Prefect flows: one module each."""

import logging
import os

from vllm_annotate.printable import Printable

# A run talks to its own servers only, unless you want otherwise. Prefect reads this when it is imported.
os.environ.setdefault("DO_NOT_TRACK", "1")
for name in ("prefect.flow_runs", "prefect.task_runs"):  # of all runs, here and on workers
    logging.getLogger(name).addFilter(Printable())
