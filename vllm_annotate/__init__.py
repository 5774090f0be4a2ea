"""Annotation of captioned images through vLLM: the work itself, which knows nothing of Prefect."""

import os

# Polars' allocator, jemalloc, keeps freed memory for seconds: the first requests of a run came on top of the plan. It
# reads this when Polars is imported. Plan and merge of a million rows take no longer with it.
os.environ.setdefault("_RJEM_MALLOC_CONF", "dirty_decay_ms:0")
