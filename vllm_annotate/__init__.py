"""Annotation of captioned images through vLLM: the work itself, which knows nothing of Prefect."""

import os

# How long Polars' allocator, jemalloc, keeps freed memory; it reads this when Polars is imported. For seconds, by
# default: the first requests of a run came on top of the plan. Not at all: each small input file that is planned would
# have its memory mapped again, which is a third of the time.
os.environ.setdefault("_RJEM_MALLOC_CONF", "dirty_decay_ms:100,muzzy_decay_ms:0")
