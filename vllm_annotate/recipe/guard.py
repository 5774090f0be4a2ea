"""Two recipes never mix in one output: which one wrote it is recorded, and checked before every run."""

from typing import Any

from vllm_annotate.errors import UsageError
from vllm_annotate.storage.atomic import read_json, replacing, write_json
from vllm_annotate.storage.workspace import FORMAT, Workspace


def guard_recipe(workspace: Workspace, settings: dict[str, Any], recipe_fingerprint: str) -> None:
    """Raises UsageError for a recipe other than the one that wrote what is here.

    An output without a `recipe.json` comes from an older script and is taken as it is.
    """
    if workspace.whole is not None:
        guard_recipe(Workspace(workspace.whole), settings, recipe_fingerprint)
    answers = [workspace.output, *workspace.parts.glob("*.jsonl")]
    if not any(path.exists() and path.stat().st_size for path in answers):
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
            "Answers of two recipes are not mixed: go back to the first, choose another --output, "
            f"or delete {workspace.recipe} to mix them knowingly"
        )


def read_recipe(workspace: Workspace) -> dict[str, Any] | None:
    """Fingerprint and settings of the recipe that wrote the output; None where none is recorded.

    Raises UsageError for a file that is torn or edited: it is no permission to mix recipes.
    """
    try:
        recipe = read_json(workspace.recipe)
    except ValueError as error:
        recipe, why = {}, str(error)
    else:
        why = "it lacks fingerprint and settings"
    if recipe is None or (isinstance(recipe.get("fingerprint"), str) and isinstance(recipe.get("settings"), dict)):
        return recipe
    raise UsageError(
        f"{workspace.recipe} is damaged ({why:.100}), so nobody can tell which recipe wrote {workspace.output}: "
        "restore it, choose another --output, or delete it to go on with the recipe of this run"
    )


def record_recipe(workspace: Workspace, settings: dict[str, Any], recipe_fingerprint: str) -> None:
    """Writes down which recipe the answers of this workspace come from, and the format of its work folder."""
    with replacing(workspace.format) as file:
        file.write(f"{FORMAT}\n".encode())
    write_json(workspace.recipe, {"fingerprint": recipe_fingerprint, "settings": settings})
