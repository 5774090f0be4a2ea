"""Shows a run in the Prefect UI as artifacts that update during the run.

Keys are the same in every run, so that the UI shows each artifact's history across runs.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

from prefect.artifacts import Artifact, MarkdownArtifact, ProgressArtifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from vllm_annotate.pipeline.outcome import live_figures, proofs
from vllm_annotate.pipeline.recording import Telemetry
from vllm_annotate.pipeline.session import Run
from vllm_annotate.pipeline.work import Work
from vllm_annotate.report import markdown
from vllm_annotate.report.figures import telemetry_charts, telemetry_figures
from vllm_annotate.report.gallery import newest_files, newest_parts, newest_rows, with_images
from vllm_annotate.report.report import Report
from vllm_annotate.report.summary import sentence
from vllm_annotate.storage.image_roots import ImageRoot

FIRST_SECONDS, LIVE_SECONDS, FINAL_SECONDS = 3.0, 10.0, 60.0
FINAL_RETRIES = 2  # 6 s: the end of the run waits for them
PICTURES_EVERY = 3  # updates; charts and samples are large
SAMPLES, SAMPLE_SIDE = 6, 256
FAILURE_EXAMPLES = 10


class Artifacts:
    """The artifacts of one flow run."""

    def __init__(self, run: Run, work: Work, telemetry: Telemetry, warn: Callable[[str], None]) -> None:
        self.telemetry = telemetry
        self._run, self._work = run, work
        self._warn = warn
        self._ids: dict[str, UUID] = {}
        self._failed = False

    async def update_regularly(self) -> None:
        """Updates until cancelled. Errors of the API never stop the run."""
        updates = 0
        await asyncio.sleep(FIRST_SECONDS)
        async with get_client() as self._client:
            while True:
                try:
                    await self._show_live(pictures=updates % PICTURES_EVERY == 0)
                except Exception as error:  # any error of Prefect: the next update may succeed
                    self._warn_once(error)
                updates += 1
                await asyncio.sleep(LIVE_SECONDS)

    async def finish(self, report: Report) -> None:
        """Writes the final state; gives up if the API fails."""
        try:
            charts = await asyncio.to_thread(telemetry_charts, self.telemetry)
            with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: FINAL_RETRIES}):
                async with asyncio.timeout(FINAL_SECONDS), get_client() as self._client:
                    await self._show_final(report, charts)
        except Exception as error:  # report.html has the same content
            self._warn_once(error)

    async def _show_final(self, report: Report, charts: Sequence[str]) -> None:
        workspace, final = self._run.workspace, sentence(report)
        await self._show("annotate-summary", markdown.summary(report, str(workspace.answers)), final)
        rows = await asyncio.to_thread(newest_rows, [workspace.failures], FAILURE_EXAMPLES)
        await self._show("annotate-failures", markdown.failures(report.failures, rows), final)
        await self._show_verdict()
        await self._show_proof()
        await self._show_gpus(charts)
        await self._show_samples(newest_files(workspace.answers))
        await self._show_progress(self._percent() if report.failed_chunks else 100.0, final)

    async def _show_live(self, *, pictures: bool) -> None:
        run, name = self._run, self._run.workspace.output.name
        figures = live_figures(run, self._work, time.monotonic() - self.telemetry.started)
        await self._show_progress(self._percent(), f"{name}: {figures['Answered']} answered, {figures['Left']} left")
        summary = markdown.live_summary(figures, str(run.workspace.answers))
        await self._show("annotate-summary", summary, f"{name}, so far")
        parts = await asyncio.to_thread(newest_parts, run.workspace, "failures.jsonl")
        rows = await asyncio.to_thread(newest_rows, parts, FAILURE_EXAMPLES)
        text = markdown.failures(dict(run.annotator.tally.failures.most_common()), rows)
        await self._show("annotate-failures", text, f"{name}, so far")
        await self._show_verdict()
        await self._show_proof()
        if pictures:
            await self._show_gpus(await asyncio.to_thread(telemetry_charts, self.telemetry))
            parts = await asyncio.to_thread(newest_parts, run.workspace, "jsonl")
            await self._show_samples([*parts, run.workspace.output])

    async def _show_verdict(self) -> None:
        verdict = self.telemetry.bottleneck.verdict()
        description = f"{self._run.workspace.output.name}: {verdict.title}"
        await self._show("annotate-bottleneck", markdown.bottleneck(verdict), description)

    async def _show_proof(self) -> None:
        description = f"{self._run.workspace.output.name}: what the servers see, and where their boxes point"
        await self._show("annotate-proof", markdown.proof(proofs(self._run)), description)

    async def _show_gpus(self, charts: Sequence[str]) -> None:
        text = markdown.gpus(telemetry_figures(self.telemetry), charts)
        await self._show("annotate-gpus", text, f"{self._run.workspace.output.name}: GPUs and servers")

    async def _show_samples(self, files: Sequence[Path]) -> None:
        text = await asyncio.to_thread(sample_pictures, files, self._run.files.image_root)
        await self._show("annotate-samples", text, f"The newest answers for {self._run.workspace.output.name}")

    async def _show_progress(self, percent: float, description: str) -> None:
        await self._upsert(ProgressArtifact(key="annotate-progress", description=description, progress=percent))

    async def _show(self, key: str, text: str, description: str) -> None:
        await self._upsert(MarkdownArtifact(key=key, description=description, markdown=text))

    async def _upsert(self, artifact: Artifact) -> None:
        """Creates the artifact, or updates the one that this run created."""
        key = str(artifact.key)
        if key not in self._ids:
            self._ids[key] = (await artifact.acreate(client=self._client)).id
            return
        update = ArtifactUpdate(data=await artifact.aformat(), description=artifact.description)
        # The client's own method also sends the content as an event, which the server stores for a week.
        try:
            await self._client.request(
                "PATCH",
                "/artifacts/{id}",
                path_params={"id": self._ids[key]},
                json=update.model_dump(mode="json", exclude_unset=True),
            )
        except ObjectNotFound:  # deleted meanwhile
            del self._ids[key]

    def _warn_once(self, error: Exception) -> None:
        if not self._failed:
            self._warn(f"could not update the artifacts ({error!r:.200}); report.html will have their content")
        self._failed = True

    def _percent(self) -> float:
        return min(100.0, 100 * self._run.annotator.tally.done / self._work.rows) if self._work.rows else 100.0


def sample_pictures(files: Sequence[Path], image_root: ImageRoot) -> str:
    """Markdown with the newest answers in the files and their boxes."""
    return markdown.samples(list(with_images(newest_rows(files, SAMPLES), image_root, SAMPLE_SIDE)))


@asynccontextmanager
async def live_artifacts(
    run: Run, work: Work, telemetry: Telemetry, warn: Callable[[str], None]
) -> AsyncIterator[Artifacts]:
    """Updates the artifacts until the context ends; `finish` them afterwards."""
    artifacts = Artifacts(run, work, telemetry, warn)
    updates = asyncio.create_task(artifacts.update_regularly())
    try:
        yield artifacts
    finally:
        updates.cancel()
        for outcome in await asyncio.gather(updates, return_exceptions=True):
            if isinstance(outcome, Exception):
                warn(f"the artifacts were not updated because of {outcome!r}")
