"""What keeps a reference to a saved block apart from a block's own fields."""

from typing import Any

from prefect.blocks.core import Block, schema_extra


def closed_schema(schema: dict[str, Any], model: type[Block]) -> None:
    """Says in a block's JSON schema that it has no other fields.

    All our fields have defaults. Without this, `{"$ref": …}`, which the UI sends for a block chosen from its list,
    is valid as a reference and as a block, and the server refuses a parameter that is both.
    """
    schema_extra(schema, model)
    schema["additionalProperties"] = False
