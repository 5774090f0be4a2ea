"""What a report says in words and tables."""

from vllm_annotate.report.report import Report

NAMED_CHUNKS = 10  # in a sentence; report.json has them all


def counts_by_name(report: Report) -> list[tuple[str, str, dict[str, int]]]:
    """(what is counted, in which unit, how many of each) for people; what never occurred is left out."""
    quality = report.quality
    tables = [
        ("Failure", "Images", report.failures),
        ("Answers read as", "Images", quality["parse_stages"]),
        ("Flag", "Images", quality["flags"]),
        ("Most frequent names", "Objects", quality["names"]),
        ("Where boxes lie", "Objects", quality["areas"]),
    ]
    return [table for table in tables if table[2]]


def stand_ins(report: Report) -> list[str]:
    """Endpoints that are no model."""
    return [url for url, version in report.servers.items() if version.get("stand_in")]


def sentence(report: Report) -> str:
    """The run in one line: what was answered, what failed and why."""
    images = report.images
    earlier = images.answered_before_an_interruption
    parts = [f"{images.answered} answered" + (f" ({earlier} of them before an interruption)" if earlier else "")]
    if images.already_done:
        parts.append(f"{images.already_done} had answers before")
    if images.failed:
        kinds = ", ".join(f"{count} {kind}" for kind, count in report.failures.items())
        parts.append(f"{images.failed} failed ({kinds})")
    else:
        parts.append("0 failed")
    if report.failures_left_alone:
        parts.append(f"{report.failures_left_alone} failures of other kinds were left alone")
    if images.without_caption:
        parts.append(f"{images.without_caption} asked without a caption")
    if images.annotations_error:
        parts.append(f"{images.annotations_error} answers hold no annotation")
    text = f"{images.distinct} images: " + ", ".join(parts)
    return text + (f"; failed chunks: {chunk_names(report.failed_chunks)}" if report.failed_chunks else "")


def chunk_names(failed_chunks: list[str]) -> str:
    """The first of them; report.json has all."""
    more = f" and {len(failed_chunks) - NAMED_CHUNKS} more" if len(failed_chunks) > NAMED_CHUNKS else ""
    return ", ".join(failed_chunks[:NAMED_CHUNKS]) + more
