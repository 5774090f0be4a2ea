"""The same job with datatrove's inference runner and its checkpoints; run it with a Python that has datatrove.

`python benchmarks/peers/datatrove_job.py INPUT IMAGES OUTPUT URL IN_FLIGHT REQUEST`. REQUEST is a file with the chat
completion to fill in: {caption} is a placeholder, and the image is replaced.
"""

import base64
import json
import mimetypes
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.inference.run_inference import InferenceConfig, InferenceRunner
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter


async def annotate(
    document: Any, generate: Callable[[dict[str, Any]], Awaitable[Any]], images: Path, request: dict[str, Any]
) -> dict[str, Any]:
    """Annotates one row."""
    media_type, _ = mimetypes.guess_type(document.id)
    image = base64.b64encode((images / document.id).read_bytes()).decode()
    system, user = request["messages"]
    content = [
        {"type": "image_url", "image_url": {"url": f"data:{media_type};base64,{image}"}},
        {"type": "text", "text": user["content"][1]["text"].replace("{caption}", document.text)},
    ]
    answer = await generate({**request, "messages": [system, {"role": "user", "content": content}]})
    return {"vlm_output": answer.text, "annotations": json.loads(answer.text)}


def main(source: str, images: str, output: str, url: str, in_flight: str, request: str) -> None:
    """Annotates every row."""
    folder = Path(output).with_suffix("")
    asked = json.loads(Path(request).read_text())
    runner = InferenceRunner(
        annotate,
        InferenceConfig(
            server_type="endpoint",
            endpoint_url=url,
            model_name_or_path=asked["model"],
            max_concurrent_generations=int(in_flight),
        ),
        JsonlWriter(str(folder / "output"), output_filename="${rank}_${chunk_index}.jsonl", compression=None),
        shared_context={"images": Path(images), "request": asked},
        checkpoints_local_dir=str(folder / "checkpoints"),
        records_per_chunk=500,
    )
    reader = JsonlReader(
        str(Path(source).parent), glob_pattern=Path(source).name, text_key="caption", id_key="image_path"
    )
    LocalPipelineExecutor(pipeline=[reader, runner], tasks=1, logging_dir=str(folder / "logs")).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
