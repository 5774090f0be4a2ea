"""The Prefect flows: one module each."""

import logging

from vllm_annotate.printable import Printable

for name in ("prefect.flow_runs", "prefect.task_runs"):  # of all runs, here and on workers
    logging.getLogger(name).addFilter(Printable())
