"""The report of an output that was merged from shards."""

from tests.report.test_page import REPORT
from vllm_annotate.inputs.plan_file import Counts
from vllm_annotate.report.report import Tokens
from vllm_annotate.report.shard_reports import summarise_shards
from vllm_annotate.results.merged import Merged

MAKER = {"recipe": "r", "first": "2026-01-01", "last": "2026-01-01", "model": "m", "settings": {}}


def test_a_shard_that_ran_again_without_news_keeps_its_figures() -> None:
    done = REPORT.model_copy(
        update={
            "images_per_second": 4.0,
            "tokens": Tokens(completion=500),
            "failed_chunks": ["chunk 1 of 2"],
            "input": "rows.jsonl",
        }
    )
    idle = done.model_copy(
        update={
            "last_run": done,
            "annotating_seconds": 0.0,
            "tokens": Tokens(),
            "input": "",
            "made_by": [MAKER],
            "failed_chunks": [],
        }
    )
    merged = summarise_shards(Counts(), Merged(), {"1-of-2": idle, "2-of-2": done}, [], [])
    assert merged.tokens.completion == 1000
    assert merged.annotating_seconds > 0
    assert merged.images_per_second > 0
    assert merged.failed_chunks == ["chunk 1 of 2 of shard 2-of-2"], "a chunk that was finished since is not failed"
    assert merged.input == "rows.jsonl"
    assert [maker["recipe"] for maker in merged.made_by] == ["r"]
    assert merged.shards is not None
    assert merged.shards["1-of-2"]["images_per_second"] == 4.0
