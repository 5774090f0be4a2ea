"""The built-in prompts and the JSON schema of an answer, in each family's native form."""

from typing import Any

from vllm_annotate.recipe.families import SPACES, Family
from vllm_annotate.recipe.settings import Recipe

# The model's family fills in {space}, {box}, {corners} and {name}.
SYSTEM_PROMPTS = {
    "en": (
        "You annotate images for training a text-to-image layout model. Look at the image, then answer with one JSON "
        "object and nothing else:\n"
        '{"rationale": "…", "objects": [{"{box}": {corners}, "{name}": "…"}]}\n'
        "First the rationale: two to four sentences on where things are, how large they are and how they stand to one "
        "another (left of, above, in front of, inside). Then the objects: every distinct thing that the caption names "
        "or that matters for the layout, each once, with a short label and its box {space}, top left corner first. "
        "Write in English."
    ),
    "zh": (
        "你为训练文生图布局模型的数据标注图片。请观察图片,只输出一个 JSON 对象,不要输出其他内容:\n"
        '{"rationale": "…", "objects": [{"{box}": {corners}, "{name}": "…"}]}\n'
        "先写 rationale:用两到四句话说明画面中各物体的位置、大小以及相互关系(左右、上下、前后、内外)。"
        "再写 objects:列出描述中提到的或对布局重要的每一个物体,各列一次,给出简短的名称 {name},"
        "以及它的坐标框 {box}({space},先左上角,后右下角)。请用中文书写。"
    ),
}
USER_PROMPTS = {"en": "Caption: {caption}", "zh": "图片描述:{caption}"}


def system_prompt(recipe: Recipe, family: Family) -> str:
    """Returns the instructions, in the family's form. The same for every image: vLLM's prefix cache serves them."""
    if recipe.system_prompt is not None:
        return recipe.system_prompt
    corners = "[y1, x1, y2, x2]" if family.y_first else "[x1, y1, x2, y2]"
    prompt = SYSTEM_PROMPTS[recipe.language].replace("{corners}", corners)
    prompt = prompt.replace("{box}", family.box_key).replace("{name}", family.name_key)
    return prompt.replace("{space}", SPACES[family.space][recipe.language])


def user_prompt(recipe: Recipe) -> str:
    """Returns the text after the image, with the placeholder `{caption}`."""
    return USER_PROMPTS[recipe.language] if recipe.user_prompt is None else recipe.user_prompt


def answer_schema(recipe: Recipe, family: Family) -> dict[str, Any]:
    """Returns the JSON schema of an answer. All strings and arrays are bounded: else a model can run to max_tokens."""
    coordinate = {"type": "number" if family.space == "unit" else "integer"}
    item = {
        "type": "object",
        "properties": {
            family.box_key: {"type": "array", "items": coordinate, "minItems": 4, "maxItems": 4},
            family.name_key: {"type": "string", "maxLength": 120},
        },
        "required": [family.box_key, family.name_key],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {
            "rationale": {"type": "string", "maxLength": 2000},
            "objects": {"type": "array", "items": item, "maxItems": recipe.max_objects},
        },
        "required": ["rationale", "objects"],
        "additionalProperties": False,
    }
