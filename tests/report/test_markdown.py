"""The artifacts of the Prefect UI in Markdown."""

from tests.report.test_page import REPORT
from vllm_annotate.report.markdown import summary
from vllm_annotate.report.report import Images, Tokens, Whole

QUALITY = {"parse_stages": {"json": 9000}, "flags": {"swapped": 1234}, "flagged": 1234, "names": {"cat": 25_000},
           "areas": {}, "answers": 9000}  # fmt: skip


def test_a_run_without_news_shows_the_output_and_the_rates_of_the_last_run() -> None:
    last = REPORT.model_copy(update={"images_per_second": 12.5, "tokens": Tokens(prompt=9_000_000, completion=12_345)})
    images = Images(input=9000, distinct=9000, already_done=9000, answered=0, failed=0)
    idle = REPORT.model_copy(
        update={"images": images, "last_run": last, "output": Whole(images=9000, quality=QUALITY), "failures": {}}
    )
    text = summary(idle, "labeled.jsonl").replace("\\", "")
    for row in (
        "| Already answered | 9,000 |", "| Answered | 0 |", "| Flagged in the output | 1,234 of 9,000 |",
        "| Images per second | 12.5 |", "| Tokens (prompt / completion) | 9,000,000 / 12,345 |",
        "| Tokens per second (prompt / completion) | 1,000,000 / 1,372 |", "| cat | 25,000 |", "| swapped | 1,234 |",
    ):  # fmt: skip
        assert row in text, row
