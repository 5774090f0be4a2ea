"""Combines the reports of all shards into one."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import chain

from vllm_annotate.inputs.plan_file import Counts
from vllm_annotate.report.report import Images, Report, Seen, SkippedLines, Tokens
from vllm_annotate.results.merged import Merged
from vllm_annotate.results.provenance import Makers, made_by
from vllm_annotate.telemetry.bottleneck import Bottleneck, Kind, Verdict

OF_A_SHARD = {"started", "images", "seconds", "annotating_seconds", "images_per_second"}


def summarise_shards(
    counts: Counts, merged: Merged, reports: Mapping[str, Report], lost: Sequence[str], makers: Makers
) -> Report:
    """The report of an output that was merged from shards; `reports` are theirs, by shard name.

    `makers` are the output's before the merge. Image counts come from the merge. Times, tokens, servers and
    telemetry come from each shard's last run that had something to do: `seconds` run from the first start to the
    last end, and `annotating_seconds` are the sum of the shards', at most `seconds`. The bottleneck is the one with
    the most seconds over all shards, with the evidence of the shard that had it longest.
    """
    runs = {name: report.last for name, report in reports.items()}
    latest = list(runs.values())
    seconds = _span(latest)
    annotating = min(seconds, sum(report.annotating_seconds for report in latest))
    first = latest[0] if latest else None
    return Report(
        images=Images(
            input=counts.input,
            distinct=counts.distinct,
            already_done=counts.already_done,
            answered=merged.answered,
            without_caption=sum(report.images.without_caption for report in latest),
            failed=merged.failures.total(),
            annotations_error=merged.annotations_error,
        ),
        skipped_lines=SkippedLines.counted(counts),
        failures=dict(merged.failures.most_common()),
        failed_chunks=[
            *lost,
            *(f"{chunk} of shard {name}" for name, report in reports.items() for chunk in report.failed_chunks),
        ],
        started=min((report.started for report in latest), default=""),
        seconds=round(seconds, 3),
        annotating_seconds=round(annotating, 3),
        images_per_second=round(_answered(latest) / annotating, 3) if annotating else 0.0,
        tokens=Tokens(
            prompt=sum(report.tokens.prompt for report in latest),
            completion=sum(report.tokens.completion for report in latest),
        ),
        images_sent=_sums([report.images_sent for report in latest]),
        quality=merged.quality.summary(),
        made_by=made_by(makers, *(report.made_by for report in reports.values())),
        recipe=first.recipe if first else "",
        family=first.family if first else "",
        model=first.model if first else "",
        endpoints=list(dict.fromkeys(url for report in latest for url in report.endpoints)),
        servers={f"{url} ({name})": server for name, report in runs.items() for url, server in report.servers.items()},
        proof={f"{url} ({name})": proof for name, report in runs.items() for url, proof in report.proof.items()},
        bottleneck=_bottleneck(latest),
        telemetry=_telemetry(runs),
        input=first.input if first else "",
        shards={name: report.model_dump(mode="json", include=OF_A_SHARD) for name, report in runs.items()},
    )


def _answered(reports: Sequence[Report]) -> int:
    """Images that the last runs answered, without those of interrupted runs."""
    images = [report.images for report in reports]
    return sum(each.answered - each.answered_before_an_interruption for each in images)


def _sums(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    return {name: sum(each.get(name, 0) for each in counts) for name in dict.fromkeys(chain.from_iterable(counts))}


def _span(reports: Sequence[Report]) -> float:
    """Seconds from the first start to the last end."""
    starts = [datetime.fromisoformat(report.started).timestamp() for report in reports]
    ends = [start + report.seconds for start, report in zip(starts, reports, strict=True)]
    return max(ends, default=0.0) - min(starts, default=0.0)


def _bottleneck(reports: Sequence[Report]) -> Verdict:
    """The verdict of the shard that had the most frequent bottleneck for the longest time."""
    judged = [(_held(report), report.bottleneck) for report in reports]
    seconds = Counter[Kind]()
    for held, _ in judged:
        seconds.update(held)
    kinds = Counter({verdict.kind: seconds[verdict.kind] for _, verdict in judged})
    if not kinds:
        return Bottleneck().verdict()
    kind = kinds.most_common(1)[0][0]
    _, verdict = max((each for each in judged if each[1].kind == kind), key=lambda each: each[0].get(kind, 0.0))
    total = seconds.total() or 1.0
    return replace(verdict, shares={of: round(share / total, 3) for of, share in seconds.most_common()})


def _held(report: Report) -> dict[Kind, float]:
    """Seconds per bottleneck of a shard."""
    return {kind: share * report.annotating_seconds for kind, share in report.bottleneck.shares.items()}


def _telemetry(reports: Mapping[str, Report]) -> Seen:
    """The telemetry of all shards; names of GPUs and servers include the shard."""
    seen = {name: report.telemetry for name, report in reports.items()}
    return Seen(
        samples=sum(each.samples for each in seen.values()),
        missing=list(dict.fromkeys(note for each in seen.values() for note in each.missing)),
        gpus={f"{gpu} ({name})": values for name, each in seen.items() for gpu, values in each.gpus.items()},
        servers={f"{url} ({name})": values for name, each in seen.items() for url, values in each.servers.items()},
    )
