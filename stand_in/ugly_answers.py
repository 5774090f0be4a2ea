"""Malformed answers as models write them, with the correct boxes (0–1000, by name) or flags for each.

Every defect exists in Chinese and in English. The image is 560 × 420 pixels.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field

WIDTH, HEIGHT = 560, 420

Boxes = dict[str, list[int]]


@dataclass(frozen=True)
class Ugly:
    """A malformed answer: its text, the model's family, and the boxes it means."""

    defect: str
    text: str
    boxes: Boxes | None  # None: no annotation
    family: str = "qwen2.5-vl"
    truncated: bool = False
    flags: set[str] = field(default_factory=set)  # at least these


WORDS = {
    "en": ("The cat sits left of the lamp, a bowl in front.", ("cat", "lamp", "bowl")),
    "zh": ("猫坐在灯的左边，前面有一个碗。", ("猫", "灯", "碗")),
}
PIXELS = ([28, 42, 280, 210], [308, 21, 532, 399], [56, 336, 168, 378])
SHARES = ([50, 100, 500, 500], [550, 50, 950, 950], [100, 800, 300, 900])


def _base(language: str) -> tuple[str, Boxes]:
    rationale, names = WORDS[language]
    objects = [{"bbox_2d": box, "label": name} for box, name in zip(PIXELS, names, strict=True)]
    text = json.dumps({"rationale": rationale, "objects": objects}, ensure_ascii=False)
    return text, dict(zip(names, (list(share) for share in SHARES), strict=True))


# Defect → function that adds it to a clean answer without changing the meaning.
HARMLESS: dict[str, Callable[[str], str]] = {
    "fence": lambda text: f"```json\n{text}\n```",
    "fence that never closes": lambda text: f"```json\n{text}",
    "fence without a language": lambda text: f"```\n{text}\n```",
    "prose around it": lambda text: f"Sure! Here is the annotation:\n\n{text}\n\nLet me know if you need more.",
    "Chinese prose around it": lambda text: f"好的，以下是标注结果：\n{text}\n希望对你有帮助。",
    "single quotes": lambda text: text.replace('"', "'"),
    "trailing commas": lambda text: text.replace("}]", "},],").replace("],}", "]}"),
    "no last brace": lambda text: text[:-1],
    "no last bracket and brace": lambda text: text[:-2],
    "full-width punctuation": lambda text: text.replace('": ', '"：').replace(", ", "，"),
    "full-width quotes": lambda text: text.replace('"rationale"', "“rationale”").replace('"objects"', "“objects”"),
    "thinking": lambda text: f'<think>Maybe {{"objects": [{{"bbox_2d": [0, 0, 9, 9]}}]}}?</think>\n{text}',
    "thinking without its opening": lambda text: (
        f'a cat {{"bbox_2d": [0, 0, 90, 90], "label": "cat"}} yes</think>{text}'
    ),
    "raw newlines in a string": lambda text: text.replace("，", "，\n").replace(", a", ",\n a"),
    "numbers as text": lambda text: text.replace("[28, 42, 280, 210]", '["28", "42", "280", "210"]'),
    "floats": lambda text: text.replace("[28, 42, 280, 210]", "[28.0, 42.0, 280.0, 210.0]"),
    "corners as pairs": lambda text: text.replace("[28, 42, 280, 210]", "[[28, 42], [280, 210]]"),
    "other keys": lambda text: text.replace("bbox_2d", "bbox").replace("label", "name"),
    "a bare list": lambda text: json.dumps(json.loads(text)["objects"], ensure_ascii=False),
    "wrapped in an object": lambda text: f'{{"result": {text}}}',
    "objects under another name": lambda text: text.replace('"objects"', '"boxes"'),
    "comments": lambda text: text.replace('{"bbox_2d"', '/* next */ {"bbox_2d"'),
    "unquoted keys": lambda text: text.replace('"bbox_2d"', "bbox_2d").replace('"label"', "label"),
    "a byte order mark": lambda text: "\ufeff" + text,
    "Windows newlines": lambda text: json.dumps(json.loads(text), indent=1, ensure_ascii=False).replace("\n", "\r\n"),
    "inner quotes not escaped": lambda text: text.replace("left of", 'left "close to" of').replace("坐在", '"坐"在'),
    "said twice": lambda text: f"{text}\n{text}",
    "exact duplicate": lambda text: text[:-2] + ", " + text[text.index("{", 1) : text.index("}") + 1] + "]}",
}


def _cut(text: str, at: str) -> str:
    return text[: text.index(at) + len(at)]


def corpus() -> list[Ugly]:
    """All malformed answers."""
    cases = []
    for language in ("en", "zh"):
        text, boxes = _base(language)
        first, second, third = boxes
        two = {first: boxes[first], second: boxes[second]}
        for defect, spoil in HARMLESS.items():
            cases.append(Ugly(f"{defect} ({language})", spoil(text), boxes))
        cases += [
            Ugly(f"cut in a number ({language})", _cut(text, "[56, 336, 16"), two, truncated=True),
            Ugly(f"cut in a number, unsaid ({language})", _cut(text, "[56, 336, 16"), two, flags={"truncated"}),
            Ugly(f"cut in a name ({language})", text[: text.rindex(third)], two, truncated=True),
            Ugly(f"cut after a box ({language})", _cut(text, "[56, 336, 168, 378]"), two, truncated=True),
            Ugly(f"cut before the second ({language})", _cut(text, "},"), None, truncated=True),
            Ugly(f"swapped corners ({language})", text.replace("[28, 42, 280, 210]", "[280, 210, 28, 42]"), boxes,
                 flags={"swapped"}),
            Ugly(f"no box in one ({language})", text.replace('"bbox_2d": [28, 42, 280, 210], ', ""),
                 {second: boxes[second], third: boxes[third]}, flags={"malformed_box"}),
            Ugly(f"three numbers ({language})", text.replace("[28, 42, 280, 210]", "[28, 42, 280]"),
                 {second: boxes[second], third: boxes[third]}, flags={"malformed_box"}),
            Ugly(f"a point for a box ({language})", text.replace("[28, 42, 280, 210]", "[28, 42, 28, 42]"),
                 {second: boxes[second], third: boxes[third]}, flags={"degenerate"}),
            Ugly(f"a little over the edge ({language})", text.replace("[308, 21, 532, 399]", "[308, 21, 570, 399]"),
                 boxes | {second: [550, 50, 1000, 950]}),
            Ugly(f"far over the edge ({language})", text.replace("[308, 21, 532, 399]", "[308, 21, 900, 399]"),
                 boxes | {second: [550, 50, 1000, 950]}, flags={"beyond_edge"}),
            Ugly(f"shares of one ({language})", text.replace("[28, 42, 280, 210]", "[0.05, 0.1, 0.5, 0.5]"),
                 {second: boxes[second], third: boxes[third]}, flags={"unit_coordinates"}),
        ]  # fmt: skip
    cases += [
        Ugly("prose only (en)", "There is a cat to the left of a lamp. I cannot give boxes.", None),
        Ugly("prose only (zh)", "图中有一只猫和一盏灯，无法给出坐标。", None),
        Ugly("nothing", "", None),
        Ugly("white space", " " * 400 + "\n" * 40, None),
        Ugly("an apology as JSON", '{"error": "I cannot see the image"}', None),
        Ugly("a thought that never ends", "<think>Let me see [28, 42, 280, 210] …", None),
        Ugly("nothing to see", '{"rationale": "An empty street.", "objects": []}', {}),
        Ugly("Qwen2-VL's tags", "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(50,100),(500,500)<|box_end|>",
             {"cat": [50, 100, 500, 500]}, "qwen2-vl"),
        Ugly("Qwen2-VL without special tokens", "猫(50,100),(500,500)\n灯(550,50),(950,950)",
             {"猫": [50, 100, 500, 500], "灯": [550, 50, 950, 950]}, "qwen2-vl"),
        Ugly("InternVL's tags",
             "<ref>cat</ref><box>[[50, 100, 500, 500]]</box>, <ref>灯</ref><box>[[550, 50, 950, 950]]</box>",
             {"cat": [50, 100, 500, 500], "灯": [550, 50, 950, 950]}, "internvl"),
        Ugly("GLM's box", "<think>I look.</think>The cat is at <|begin_of_box|>[[50, 100, 500, 500]]<|end_of_box|>",
             {"The cat is at": [50, 100, 500, 500]}, "glm-v"),
        Ugly("MiniCPM's tags", "<ref>cat</ref><box>50 100 500 500</box>", {"cat": [50, 100, 500, 500]}, "minicpm-v"),
        Ugly("DeepSeek's tags", "<|ref|>cat<|/ref|><|det|>[[50, 100, 499, 500]]<|/det|>", {"cat": [50, 100, 499, 501]},
             "deepseek-vl2"),
        Ugly("Gemini's y first", '```json\n[{"box_2d": [100, 50, 500, 500], "label": "cat"}]\n```',
             {"cat": [50, 100, 500, 500]}, "gemini"),
        Ugly("Kimi's shares", '{"objects": [{"bbox": [0.05, 0.1, 0.5, 0.5], "label": "cat"}]}',
             {"cat": [50, 100, 500, 500]}, "kimi-vl"),
        Ugly("a loop of marching boxes", json.dumps({"objects": [
            {"bbox_2d": [28 + 56 * i, 42, 56 + 56 * i, 84], "label": "bird"} for i in range(8)]}),
             {"bird": [750, 100, 800, 200]}, flags={"progression"}),
        Ugly("a loop of one object",
             '{"objects": [' + '{"bbox_2d": [28, 42, 280, 210], "label": "cat"}, ' * 30 + '{"bbox_2d": [28, 4',
             {"cat": [50, 100, 500, 500]}, truncated=True, flags={"duplicate", "truncated"}),
        Ugly("the whole image", '{"objects": [{"bbox_2d": [0, 0, 560, 420], "label": "sky"}]}',
             {"sky": [0, 0, 1000, 1000]}, flags={"whole_image"}),
        Ugly("no name", '{"objects": [{"bbox_2d": [28, 42, 280, 210], "label": ""}]}', {"": [50, 100, 500, 500]},
             flags={"empty_name"}),
    ]  # fmt: skip
    return cases
