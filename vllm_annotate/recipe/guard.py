"""Keeps answers of two recipes out of one output: the recipe is recorded, and checked before every run."""

from typing import Any

from vllm_annotate.errors import UsageError
from vllm_annotate.storage.atomic import read_json, replacing, write_json
from vllm_annotate.storage.shard import shards_folder
from vllm_annotate.storage.workspace import FOLDER_FORMAT, FORMAT, Workspace


def guard_recipe(workspace: Workspace, settings: dict[str, Any], recipe_fingerprint: str) -> None:
    """Raises UsageError if another recipe wrote answers of this output, also in one of its shards.

    An output without a `recipe.json` comes from an older script and is accepted.
    """
    whole = Workspace(workspace.whole or workspace.output)
    works = shards_folder(whole.output).glob("*.work")
    endings = "" if whole.is_folder else ".jsonl"
    shards = (Workspace(work.with_suffix(endings), whole=whole.output) for work in sorted(works))
    for each in (whole, *shards):
        _guard(each, settings, recipe_fingerprint)


def _guard(workspace: Workspace, settings: dict[str, Any], recipe_fingerprint: str) -> None:
    """Guards the answers of one workspace; those of a folder may be of any of its shards."""
    answers = [workspace.answers, *workspace.parts.glob("*.jsonl"), *workspace.states.glob("*")]
    if not any(any(path.iterdir()) if path.is_dir() else path.exists() and path.stat().st_size for path in answers):
        return
    known = read_recipe(workspace)
    if known is not None and known["fingerprint"] != recipe_fingerprint:
        before = known.get("settings", {})
        changed = [
            f"{name}: {before.get(name)!r:.60} → {settings.get(name)!r:.60}"
            for name in sorted(before | settings)
            if before.get(name) != settings.get(name)
        ]
        raise UsageError(
            f"{workspace.output} was written with another recipe ({'; '.join(changed) or 'other built-in prompts'}). "
            "Answers of two recipes do not mix: use the first recipe, choose another --output, "
            f"or delete {workspace.recipe} to mix them on purpose"
        )


def read_recipe(workspace: Workspace) -> dict[str, Any] | None:
    """Returns fingerprint and settings of the recipe that wrote the output; None if none is recorded.

    Raises UsageError if the file is damaged.
    """
    try:
        recipe = read_json(workspace.recipe)
    except ValueError as error:
        recipe, why = {}, str(error)
    else:
        why = "it has no fingerprint or no settings"
    if recipe is None or (isinstance(recipe.get("fingerprint"), str) and isinstance(recipe.get("settings"), dict)):
        return recipe
    raise UsageError(
        f"{workspace.recipe} is damaged ({why:.100}), so the recipe that wrote {workspace.output} is unknown: "
        "restore it, choose another --output, or delete it to continue with the recipe of this run"
    )


def record_recipe(workspace: Workspace, settings: dict[str, Any], recipe_fingerprint: str) -> None:
    """Records the recipe of this workspace's answers, and the format of its work folder."""
    with replacing(workspace.format) as file:
        file.write(f"{FOLDER_FORMAT if workspace.is_folder else FORMAT}\n".encode())
    write_json(workspace.recipe, {"fingerprint": recipe_fingerprint, "settings": settings})
