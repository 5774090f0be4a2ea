"""What several places in a text say → one rationale and one list of objects."""

from vllm_annotate.grounding.objects import Item, Part


def join(parts: list[Part]) -> tuple[str, list[Item], bool]:
    """Returns rationale and objects, and whether the text says several things that differ.

    The last whole answer counts, as models draft before they answer. Objects outside it are added, unless they are
    other versions of its objects: those have the same names.
    """
    if len(parts) == 1:
        return parts[0].rationale, parts[0].items or [], False
    answers = [part for part in parts if part.is_answer]
    whole = [part for part in answers if part.rationale and not part.is_cut]
    chosen = next(reversed(whole or answers), None)
    if chosen is None:
        items, several = _in_turn(parts)
    else:
        items, several = _around(chosen, parts)
    rationales = list(dict.fromkeys(part.rationale for part in parts if part.rationale))
    rationale = chosen.rationale if chosen else ""
    return rationale or next(reversed(rationales), ""), items, several or len(rationales) > 1


def _around(chosen: Part, parts: list[Part]) -> tuple[list[Item], bool]:
    """Returns the objects of the chosen answer, and those that stand apart from it and have other names."""
    known = _keys(chosen)
    names = {item.name for item in chosen.items or ()}
    items: list[Item] = []
    several = False
    for part in parts:
        if part is chosen:
            items += part.items or ()
            continue
        others = [item for item in part.items or () if _key(item) not in known]
        several |= bool(others) or part.is_cut
        is_version = part.is_answer and bool(part.rationale)
        if not is_version and not names & {item.name for item in others}:
            items += others
    return items, several


def _in_turn(parts: list[Part]) -> tuple[list[Item], bool]:
    """Returns the objects of lists that follow each other. After words, a list replaces the objects that it repeats."""
    items: list[Item] = []
    several = False
    for part in parts:
        found = part.items or []
        if part.after_prose and items:
            names, known = {item.name for item in found}, _keys(part)
            several |= any(item.name in names and _key(item) not in known for item in items)
            items = [item for item in items if item.name not in names]
        items += found
    return items, several


def _keys(part: Part) -> set[tuple[str, tuple[float, ...] | None]]:
    return set(map(_key, part.items or ()))


def _key(item: Item) -> tuple[str, tuple[float, ...] | None]:
    return item.name, tuple(item.box.numbers) if item.box else None
