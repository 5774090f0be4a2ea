"""Checks that `flows` and `blocks` are ours and not another project's."""

import importlib.util
from pathlib import Path

from vllm_annotate.errors import UsageError

HERE = Path(__file__).parent.parent
PACKAGES = ("flows", "blocks")


def check_own_packages() -> None:
    """Raises UsageError if Python would import another project's package instead of ours."""
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        found = Path(next(iter(spec.submodule_search_locations or [spec.origin or ""]))) if spec is not None else None
        if found is None or found.parent.resolve() != HERE.resolve():
            raise UsageError(
                f"Python finds {found or 'nothing'} instead of vllm-annotate's package {name!r}: run from another "
                "folder, remove that folder from PYTHONPATH, rename it, or use --without-prefect, which does not need "
                "the package"
            )
