"""The files of a run: when its answers leave the machine."""

import asyncio
import shutil
from pathlib import Path

from tests.support.stores import Store
from vllm_annotate.inputs.plan_file import Chunk
from vllm_annotate.inputs.source import Source
from vllm_annotate.pipeline.files import RunFiles
from vllm_annotate.results.files import Files
from vllm_annotate.results.parts import answers_path


class CopiedFiles(Files):
    """An output whose answers are kept in another folder."""

    def __init__(self, store: Store, folder: Path) -> None:
        super().__init__(store.workspace)
        self.folder = folder

    def keep(self, chunk: Chunk) -> None:
        shutil.copy(answers_path(self.workspace, chunk), self.folder)


async def test_the_answers_of_a_chunk_are_kept_while_it_is_at_work_and_at_its_end(tmp_path: Path) -> None:
    store, kept = Store(tmp_path, 3), tmp_path / "kept"
    kept.mkdir()
    (chunk,) = store.plan.chunks
    files = RunFiles(Source(store.input), tmp_path, CopiedFiles(store, kept), print, keep_seconds=0.01)
    copy = kept / answers_path(store.workspace, chunk).name
    async with files.keeping(chunk, print):
        store.answer(0)
        async with asyncio.timeout(30):
            while not (copy.exists() and copy.read_bytes().count(b"\n") == 1):
                await asyncio.sleep(0.01)
        store.answer(1, 2)
    assert copy.read_bytes().count(b"\n") == 3
