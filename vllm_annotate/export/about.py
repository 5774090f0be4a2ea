"""What a format's writer has to know beside the rows."""

from dataclasses import dataclass, field

from vllm_annotate.grounding.names import Category


@dataclass(frozen=True)
class About:
    """About the export as a whole."""

    categories: dict[str, Category]  # by key; most frequent first
    model: str = ""
    image_root: str = ""  # goes before image paths, if set
    image_url: str = ""
    columns: dict[str, str] = field(default_factory=dict)  # the input's other columns, and the kind of each
