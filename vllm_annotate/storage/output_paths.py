"""The files of an output: beside it, and in its work folder."""

from dataclasses import dataclass
from pathlib import Path

from vllm_annotate.storage.packed import is_packed

PILOT = "-pilot"  # ending of the pilot of an output that is a folder
SWEEP = ".sweep"  # ending of the folder with the outputs of a sweep's variants


def names_folder(output: Path | str) -> bool:
    """Whether an output, at a path or URL, is a folder: it has no ending."""
    return not str(output).endswith(".jsonl")


@dataclass(frozen=True)
class OutputPaths:
    """Paths beside the output `labeled.jsonl`; `labeled.work/` is internal.

    A shard has its own workspace: its output is `labeled.shards/03-of-16.jsonl`, its `whole` is `labeled.jsonl`.

    The output of several input files is a folder, `labeled/`. Each input file has a workspace of its own: its `state`
    is a folder in `labeled.work/files/`, where its output grows until it is finished, and its `final` path. A shard of
    such an output has its report and its work folder in `labeled.shards/`, and its answers in `labeled/`.
    """

    output: Path
    whole: Path | None = None
    state: Path | None = None
    final: Path | None = None

    @property
    def is_folder(self) -> bool:
        """Whether the output is a folder."""
        return names_folder(self.output)

    @property
    def answers(self) -> Path:
        """Where the answers are in the end: the output, or the folder that all shards write into."""
        return self.whole if self.whole is not None and self.is_folder else self.output

    @property
    def states(self) -> Path:
        """The folder of the states of input files, of an output that is a folder. Shards share it."""
        return self.answers.with_name(f"{self.answers.stem}.work") / "files" if self.is_folder else self.work / "files"

    @property
    def finished(self) -> Path:
        """The entries of finished input files, of an output that is a folder."""
        return self.work / "finished.jsonl"

    @property
    def common_folder(self) -> Path:
        """Where the names of input files begin, of an output that is a folder."""
        return self.work / "common-folder"

    @property
    def is_packed(self) -> bool:
        """Whether the output of an input file is compressed once it is finished: only new rows grow in its state."""
        return self.final is not None and is_packed(self.final)

    @property
    def outputs(self) -> list[Path]:
        """The files whose rows count as done."""
        earlier = self.final if self.is_packed and self.final != self.output else self.whole
        return [self.output] if earlier is None else [self.output, earlier]

    def _beside(self, suffix: str) -> Path:
        return self.output.with_name(self.output.stem + suffix) if self.state is None else self.state / f"of{suffix}"

    @property
    def failures(self) -> Path:
        """Images without an answer, one per line."""
        return self._beside(".failures.jsonl")

    @property
    def report(self) -> Path:
        """The figures of the last run."""
        return self._beside(".report.json")

    @property
    def work(self) -> Path:
        """The work folder."""
        return self._beside(".work") if self.state is None else self.state

    @property
    def lock(self) -> Path:
        """The lock of the run that writes this output."""
        return self.work / "lock"

    @property
    def parts(self) -> Path:
        """Answers and failures of the chunks, until they are merged."""
        return self.work / "parts"

    @property
    def plan_rows(self) -> Path:
        """The rows of the plan in progress."""
        return self.work / "plan.parquet"

    @property
    def plan_file(self) -> Path:
        """The chunks of the plan in progress. Written last: without it there is no plan."""
        return self.work / "plan.json"

    @property
    def done_rows(self) -> Path:
        """The image paths of a large output."""
        return self.work / "done.parquet"

    @property
    def done_index(self) -> Path:
        """What `done_rows` holds, and of which version of the output."""
        return self.work / "done.json"

    @property
    def appends(self) -> Path:
        """What was appended to the output since the plan was made or opened."""
        return self.work / "appends.jsonl"

    @property
    def asked_failures(self) -> Path:
        """Failures of images that are asked again; without an answer they return to the failures file."""
        return self.work / "asked-failures.jsonl"

    @property
    def format(self) -> Path:
        """The number of the work folder's format."""
        return self.work / "format"

    @property
    def skipped(self) -> Path:
        """Skipped input lines, with line number and reason."""
        return self.work / "skipped.jsonl"

    @property
    def recipe(self) -> Path:
        """Fingerprint and settings of the recipe that wrote the output."""
        return self.work / "recipe.json"

    @property
    def job(self) -> Path:
        """The parameters of the last run, for later commands on the same output."""
        return self.work / "job.json"

    @property
    def numbers(self) -> Path:
        """The version of the input file, if its image paths are row numbers."""
        return self.work / "row-numbers.json"

    @property
    def set_aside(self) -> Path:
        """Failures that a retry by an earlier version moved here; the next merge moves them back."""
        return self.work / "set-aside.jsonl"

    @property
    def retried(self) -> Path:
        """The rows that a retry sends."""
        return self.work / "retried.jsonl"

    @property
    def torn(self) -> Path:
        """Incomplete last lines that other programs or killed runs left in outputs; moved here before an append."""
        return self.work / "torn.jsonl"

    @property
    def cache(self) -> Path:
        """Prefect's results of completed chunks."""
        return self.work / "cache"

    @property
    def logs(self) -> Path:
        """Logs of the servers that a run starts."""
        return self.work / "logs"

    @property
    def telemetry(self) -> Path:
        """Samples of GPUs, servers and the client, as Parquet files."""
        return self.work / "telemetry"

    @property
    def page(self) -> Path:
        """The report as an HTML page."""
        return self._beside(".report.html")

    @property
    def reviewed(self) -> Path:
        """Rows that people corrected."""
        return self._beside(".reviewed.jsonl")

    @property
    def audited(self) -> Path:
        """The agreement of each audited image."""
        return self._beside(".audit.jsonl")

    @property
    def asked_again(self) -> Path:
        """The folder with the other answers of an audit."""
        return self._beside(".audit")

    @property
    def sweep(self) -> Path:
        """The folder with the outputs of a sweep's variants."""
        return self._beside(SWEEP)

    def figures(self, kind: str) -> tuple[Path, Path]:
        """JSON and page of an evaluation, a comparison, an audit or a sweep."""
        return self._beside(f".{kind}.json"), self._beside(f".{kind}.html")
