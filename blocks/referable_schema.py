"""What lets a saved block be chosen where a flow takes one."""

from typing import Any

from prefect.blocks.core import Block, schema_extra


def referable_schema(schema: dict[str, Any], model: type[Block]) -> None:
    """Has a block's JSON schema take a reference, `{"$ref": …}`, in the block's place, and no other unknown field.

    Prefect's server adds that alternative itself, to the definition that is named like the schema's title. All our
    fields have defaults, so a reference would then be valid as both, which it refuses; and what its first UI sends is
    checked without the alternative. So the title is another name, and the schema takes references by itself.
    """
    schema_extra(schema, model)
    schema["title"] = model._block_type_name
    schema["patternProperties"] = {r"^\$ref$": {}}  # a pattern and not a property: forms show properties
    schema["additionalProperties"] = False
