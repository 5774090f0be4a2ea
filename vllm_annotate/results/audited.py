"""What an audit found, beside the output that the model wrote."""

from pathlib import Path
from typing import Any

from vllm_annotate.storage.json_text import json_object
from vllm_annotate.storage.workspace import Workspace


def audit_file(output: Path) -> Path:
    """Returns where the agreement of each audited image of an output is."""
    return Workspace.of_file(output).audited


class Audited:
    """The agreement of the audited images of an output; a hundred thousand at most."""

    def __init__(self, output: Path) -> None:
        self._agreement: dict[str, float] = {}
        if (path := audit_file(output)).is_file():
            with path.open("rb") as lines:
                for line in lines:
                    row: dict[str, Any] = json_object(line) or {}
                    image, agreement = row.get("image_path"), row.get("agreement", -1)
                    if isinstance(image, str) and isinstance(agreement, float | int) and 0 <= agreement <= 1:
                        self._agreement[image] = float(agreement)

    def of(self, image_path: Any) -> float | None:
        """The agreement of an image; None if it was not audited. A column of that name in a row is the user's own."""
        return self._agreement.get(image_path) if isinstance(image_path, str) else None
