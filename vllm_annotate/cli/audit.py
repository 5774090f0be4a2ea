"""`vllm-annotate audit`: asks for a sample of an output again, and compares the answers.

Exit codes: 0 audited, whatever the agreement is; 1 audited, but some images got no further answer; 2 refused; 130
interrupted.
"""

import json
from collections.abc import Mapping
from typing import Any

from cyclopts import App

from vllm_annotate.cli.console import Console
from vllm_annotate.cli.evaluate import common_options, path_in, require
from vllm_annotate.cli.interrupts import Interrupts
from vllm_annotate.cli.jobs import checked, fields_after_run, job_of, refuse_blocks, server_options
from vllm_annotate.cli.options import command, fields, option
from vllm_annotate.cli.run import logging_to, run_to_the_end
from vllm_annotate.cli.work import FINISHED, FINISHED_WITH_FAILURES

EPILOGUE = (
    "Server and recipe are those of the output's run, unless options say otherwise; another --model-name asks another "
    "model. Beside labeled.jsonl: labeled.audit.json, labeled.audit.html (open it in a browser), labeled.audit.jsonl "
    "with the agreement of each image and box, and the folder labeled.audit with the further answers. labeled.jsonl "
    "does not change.\n\n"
    "Exit codes: 0 audited, whatever the agreement is; 1 audited, but some images got no further answer; 2 refused; "
    "130 interrupted: run it again to resume."
)


def app() -> App:
    """The command's options."""
    from vllm_annotate.pipeline.audit import AuditSettings

    text = "Ask for a random sample of an output again, and estimate how far its answers can be trusted."
    options = [
        option("output", "An output of annotate."),
        *fields(AuditSettings),
        option("truth", "Rows or a COCO file, as for evaluate, for calibration. (default: labeled.reviewed.jsonl)"),
        *common_options(),
        *server_options(),
        option("max_concurrency", "Maximum requests in flight. (default: as in the output's run)"),
        option("log_json", "Write the log as JSON, one object per line.", bool),
    ]
    return command("audit", text, options, EPILOGUE)


def run(given: Mapping[str, Any], console: Console, interrupts: Interrupts) -> int:
    """Audits the output; returns the exit code."""
    from vllm_annotate.evaluation.audit_page import audit_text
    from vllm_annotate.pipeline.audit import REMEMBERED, Auditing, AuditSettings

    own = AuditSettings.model_fields
    settings = checked(AuditSettings, {name: given[name] for name in own if given.get(name) is not None})
    require(given, "output")
    output = path_in(given, "output")
    truth, synonyms = (path_in(given, name) if given.get(name) else None for name in ("truth", "synonyms"))
    of_job = {name: value for name, value in given.items() if name not in own}
    known = fields_after_run(of_job, REMEMBERED, input=str(output), output=str(output))
    refuse_blocks(known, "an audit reads no saved blocks: name a YAML file")
    with logging_to(console) as logger:
        auditing = Auditing.of(job_of(known), settings, truth, synonyms)
        finished = run_to_the_end(auditing.ask(logger), interrupts)
        found = auditing.conclude()
    if given.get("json"):
        console.show(json.dumps(found.figures, ensure_ascii=False, indent=2))
    else:
        console.show(audit_text(found.figures) + "\n\n" + "\n".join(map(str, found.files)))
    return FINISHED if finished else FINISHED_WITH_FAILURES


def interrupted(_: Mapping[str, Any]) -> str:
    """The state after an interrupted audit."""
    return "all answers so far are saved; run the same command again to resume"
