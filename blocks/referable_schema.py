"""A JSON schema for blocks that also accepts a reference to a saved block."""

from typing import Any

from prefect.blocks.core import Block, schema_extra


def referable_schema(schema: dict[str, Any], model: type[Block]) -> None:
    """Makes a block's JSON schema accept a reference, `{"$ref": …}`, instead of the block, and no other unknown field.

    Prefect's server adds this alternative to the definition that has the schema's title as its name. All our fields
    have defaults, so a reference would match both alternatives, and the server would refuse it. Values from its first
    UI are validated without the alternative. Hence the different title, and a schema that accepts references itself.
    """
    schema_extra(schema, model)
    schema["title"] = model._block_type_name
    schema["patternProperties"] = {r"^\$ref$": {}}  # not a property: forms show properties
    schema["additionalProperties"] = False
