"""`python -m deployments.setup`: prepares a Prefect server for the deployments. Idempotent.

Registers the blocks, saves example blocks, creates the work pool, and installs the automation that marks a run as
Crashed if its worker is gone; with --notify, also one that reports failed runs. Updates the automations, saves
server blocks of earlier versions again, and leaves everything else that exists unchanged.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from prefect.automations import Automation
from prefect.blocks.core import Block
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings

from blocks import AnnotationRecipe, VLLMServer
from flows.support.prefect_api import check_api
from vllm_annotate.errors import UsageError
from vllm_annotate.serving.launch import Launch

WORK_POOL = "annotate"
OUR_TAG = {"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.vllm-annotate"}
SILENT = timedelta(seconds=90)  # three heartbeats
ON_A_WORKER = ("Pending", "Submitting", "InfrastructurePending", "Running", "Retrying", "Resuming")  # states
EXAMPLES: dict[str, Block] = {
    "local": VLLMServer(endpoints=["http://localhost:8000/v1"]),
    "resident": VLLMServer(start=Launch(model_path="Qwen/Qwen2.5-VL-7B-Instruct")),
    "english": AnnotationRecipe(),
    "chinese": AnnotationRecipe(language="zh"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Sets up the server and prints what it did; returns the exit code."""
    options = argparse.ArgumentParser(prog="python -m deployments.setup", description="Set up a Prefect server.")
    text = "also report failed and crashed runs through this saved notification block, such as slack-webhook/team"
    options.add_argument("--notify", metavar="TYPE/NAME", help=text)
    notify = options.parse_args(arguments).notify
    api = get_current_settings().api.url
    if not api:
        print(
            "error: PREFECT_API_URL is not set: start a server (prefect server start) and set it, as in "
            "PREFECT_API_URL=http://127.0.0.1:4200/api",
            file=sys.stderr,
        )
        return 2
    try:
        asyncio.run(check_api())
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for kind in (VLLMServer, AnnotationRecipe):
        kind.register_type_and_schema()
    with get_client(sync_client=True) as client:
        for name, block in EXAMPLES.items():
            print(f"block {block.get_block_type_slug()}/{name}: {save_once(name, block)}")
        for name, done in renew_servers(client).items():
            print(f"block {VLLMServer.get_block_type_slug()}/{name}: {done}")
        print(f"work pool {WORK_POOL}: {make_work_pool(client)}")
    automations = [heartbeat_automation()]
    if notify:
        try:
            messenger: Any = Block.load(notify)
        except ValueError:
            print(f"error: block {notify!r} does not exist: create it in the UI, under Blocks", file=sys.stderr)
            return 2
        automations.append(notification_automation(messenger))
    for automation in automations:
        print(f"automation {automation.name!r}: {install(automation)}")
    return 0


def save_once(name: str, block: Block) -> str:
    """Saves an example block, unless one of this name exists: you may have edited it."""
    try:
        type(block).load(name)
    except ValueError:
        block.save(name)
        return "saved"
    return "exists"


def renew_servers(client: SyncPrefectClient) -> dict[str, str]:
    """Saves server blocks of earlier versions again; returns what it did by name.

    Prefect masks what was secret in the version that saved a block.
    """
    current, done = VLLMServer._calculate_schema_checksum(), {}
    for document in client.read_block_documents_by_type(VLLMServer.get_block_type_slug(), include_secrets=False):
        if document.name is None or document.block_schema is None or document.block_schema.checksum == current:
            continue
        try:
            block: Any = VLLMServer.load(document.name)
            block.save(document.name, overwrite=True)
            done[document.name] = "saved again, as Prefect masks its variables now"
        except RuntimeError:  # its fields are not valid
            done[document.name] = "not valid any more: correct it in the UI"
    return done


def make_work_pool(client: SyncPrefectClient) -> str:
    """Creates the process work pool if it does not exist."""
    try:
        client.read_work_pool(WORK_POOL)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=WORK_POOL, type="process"))
        return "created"
    return "exists"


def heartbeat_automation() -> Automation:
    """The automation that marks a silent run as Crashed, so that it can be retried and frees its slot.

    Heartbeats start 30 s into the run, and a worker can die earlier, even before it starts the run.
    """
    return Automation(
        name="vllm-annotate: runs without heartbeats have crashed",
        description="A worker or machine that dies cannot report that its runs have ended.",
        trigger=EventTrigger(
            after={f"prefect.flow-run.{name}" for name in ("heartbeat", *ON_A_WORKER)},
            expect={"prefect.flow-run.*"},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            match_related=OUR_TAG,
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=SILENT,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message=f"no heartbeat for {SILENT.seconds} s: its worker, or the worker's machine, is gone. Run it "
                "again to resume where it stopped",
            )
        ],
    )


def notification_automation(block: Block) -> Automation:
    """The automation that reports failed and crashed runs, with their message."""
    return Automation(
        name="vllm-annotate: tell of runs that fail",
        description="Uses the notification block given to deployments.setup.",
        trigger=EventTrigger(
            expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed"},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            match_related=OUR_TAG,
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[
            SendNotification(
                block_document_id=block._block_document_id,
                subject="{{ flow_run.name }}: {{ flow_run.state.name }}",
                body="{{ flow_run.state.message }}\n{{ flow_run|ui_url or flow_run.id }}",
            )
        ],
    )


def install(automation: Automation) -> str:
    """Creates the automation, or updates the one with its name."""
    try:
        automation.id = Automation.read(name=automation.name).id  # type: ignore[attr-defined]
    except ValueError:
        automation.create()
        return "created"
    automation.update()
    return "updated"


if __name__ == "__main__":
    sys.exit(main())
