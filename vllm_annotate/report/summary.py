"""Summarizes a report in words and tables."""

from vllm_annotate.report.report import InputFiles, Report

NAMED_CHUNKS = 10  # in a sentence; report.json has them all


def counts_by_name(report: Report) -> list[tuple[str, str, dict[str, int]]]:
    """Tables of counts, as (title, unit, count by name); leaves out empty ones."""
    quality = report.quality_of_output
    tables = [
        ("Failure", "Images", report.failures),
        ("Answers parsed as", "Images", quality["parse_stages"]),
        ("Flag", "Images", quality["flags"]),
        ("Most frequent names", "Objects", quality["names"]),
        ("Box positions", "Objects", quality["areas"]),
    ]
    return [table for table in tables if table[2]]


def stand_ins(report: Report) -> list[str]:
    """Endpoints without a real model."""
    return [url for url, version in report.servers.items() if version.get("stand_in")]


def sentence(report: Report) -> str:
    """A one-line summary of the run."""
    images = report.images
    earlier = images.answered_before_an_interruption
    whence = [f"{earlier} of them before an interruption"] if earlier else []
    whence += [f"{images.taken_from_pilot} of them by the pilot"] if images.taken_from_pilot else []
    parts = [f"{images.answered} answered" + (f" ({', '.join(whence)})" if whence else "")]
    if images.already_done:
        parts.append(f"{images.already_done} already answered")
    if images.failed:
        kinds = ", ".join(f"{count} {kind}" for kind, count in report.failures.items())
        parts.append(f"{images.failed} failed ({kinds})")
    else:
        parts.append("0 failed")
    if report.failures_left_alone:
        parts.append(f"{report.failures_left_alone} earlier failures not asked again")
    if images.without_caption:
        parts.append(f"{images.without_caption} without a caption")
    if images.annotations_error:
        parts.append(f"{images.annotations_error} answers without an annotation")
    if images.not_selected:
        parts.append(f"{images.not_selected} not selected")
    text = f"{images.distinct} images: " + ", ".join(parts)
    text += f"; failed chunks: {chunk_names(report.failed_chunks)}" if report.failed_chunks else ""
    return text + (f"; {in_words(report.files)}" if report.files else "")


def in_words(files: InputFiles) -> str:
    """What came of the input files."""
    parts = [f"{files.finished:,} of {files.inputs:,} input files are finished"]
    if files.failed:
        parts.append(f"{len(files.failed):,} cannot be read: {chunk_names(list(files.failed))}")
    if files.not_begun:
        parts.append(f"{files.not_begun:,} are not begun")
    return ", ".join(parts)


def chunk_names(failed_chunks: list[str]) -> str:
    """The first names; report.json has all."""
    more = f" and {len(failed_chunks) - NAMED_CHUNKS} more" if len(failed_chunks) > NAMED_CHUNKS else ""
    return ", ".join(failed_chunks[:NAMED_CHUNKS]) + more
