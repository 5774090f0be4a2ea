"""Makes command-line options from the fields of a model."""

import inspect
from collections import deque
from collections.abc import Iterable
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from cyclopts import App, Parameter
from pydantic import BaseModel, Secret

Option = inspect.Parameter
COMMAND = "vllm_annotate_command"
INPUT = "--input"


def option(name: str, text: str, kind: Any = str) -> Option:
    """An option with one value, several if `kind` is list, none if it is bool.

    Values stay text: the model validates them.
    """
    annotation = {bool: bool | None, list: list[str] | None}.get(kind, str | None)
    shown = Parameter(name=flag_of(name), help=text, negative=(), show_default=False, consume_multiple=kind is list)
    return Option(name, Option.KEYWORD_ONLY, default=None, annotation=Annotated[annotation, shown])


def flag_of(name: str) -> str:
    """`--image-root` for `image_root`, and `--with` for `with_`, as a keyword cannot be a parameter."""
    return f"--{name.rstrip('_').replace('_', '-')}"


def fields(model: type[BaseModel], *, but: Iterable[str] = ()) -> list[Option]:
    """An option for each field, except for mappings and secrets, which only files can set."""
    found = []
    for name, field in model.model_fields.items():
        kind = _kind(field.annotation)
        if name in but or kind in (dict, Secret):
            continue
        default = field.get_default(call_default_factory=True)
        shown = "" if field.is_required() or default in (None, False, "", []) else f" (default: {default})"
        found.append(option(name, f"{field.description}{shown}", kind))
    return found


def command(name: str, text: str, options: Iterable[Option], epilogue: str = "") -> App:
    """A command with these options."""

    def given(**_: Any) -> None:
        """Never called; `main` passes the bound options to the command's module."""

    given.__name__ = COMMAND
    given.__signature__ = inspect.Signature(list(options))  # type: ignore[attr-defined]
    app = App(name=name, help=text, help_format="plaintext", help_epilogue=epilogue, version_flags=[])
    app.default(given)
    return app


def last_of_each(arguments: Iterable[str], app: App) -> list[str]:
    """The arguments without the earlier ones of an option that is given again: the last wins, unless all count.

    Wrapper scripts count on that: the options of their caller, in "$@", override their own.
    """
    assert app.default_command is not None  # noqa: S101 - for the type checker
    options = inspect.signature(app.default_command).parameters.values()
    single = {flag_of(each.name) for each in options if get_args(each.annotation)[0] == str | None} | {INPUT}
    kept: dict[object, list[str]] = {}
    words = deque(arguments)
    while words:
        word = words.popleft()
        name, equals, _ = word.partition("=")
        if name not in single:
            kept[object()] = [word]
            continue
        kept.pop(name, None)
        kept[name] = [word]
        if words and not equals:
            kept[name].append(words.popleft())
        while name == INPUT and words and not words[0].startswith("-"):  # a shell makes several of a pattern
            kept[name].append(words.popleft())
    return [word for group in kept.values() for word in group]


def _kind(annotation: Any) -> Any:
    """The plain type of an annotation, without None and constraints."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        kinds = [_kind(one) for one in get_args(annotation) if one is not NoneType]
        return list if list in kinds else kinds[0]
    if origin is Annotated:
        return _kind(get_args(annotation)[0])
    return str if origin is Literal else origin or annotation
