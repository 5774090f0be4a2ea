"""The packages beside this one, which a project's own `flows` or `blocks` may hide."""

import importlib.util
from pathlib import Path

from vllm_annotate.errors import UsageError

HERE = Path(__file__).parent.parent
PACKAGES = ("flows", "blocks")


def check_own_packages() -> None:
    """Raises UsageError where Python would import another project's package instead of ours."""
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        found = Path(next(iter(spec.submodule_search_locations or [spec.origin or ""]))) if spec is not None else None
        if found is None or found.parent.resolve() != HERE.resolve():
            raise UsageError(
                f"{found or 'nothing'} stands in the place of vllm-annotate's own package {name!r}: run from another "
                "folder, take that folder off PYTHONPATH, or rename it; --without-prefect needs neither package"
            )
