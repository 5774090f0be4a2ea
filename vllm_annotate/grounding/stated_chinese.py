"""Finds relations that a Chinese text states between named objects.

Reads 杯子在盘子左边 and 桌子下面有一只猫. Whatever it does not fully understand states nothing.
"""

import re
from collections.abc import Iterator, Sequence
from functools import partial

from vllm_annotate.grounding.stated import Boxes, Stated

CLAUSE_ENDS = re.compile(r"[,，、:：()（）“”\"]")
BROKEN = re.compile(r"(?<=[边侧方面下角])[,，](?=[有是])")  # 在画面左侧,有一个女孩
SENTENCE_ENDS = re.compile(r"[。！？；.!?;\n]")
SIDE = re.compile(
    r"(?:正|紧靠|紧挨|紧邻)?(?:(?P<corner>[左右][上下])(?:角|方|侧|边|部)|(?P<side>[左右上下])(?:手边|半部分|半部|部|方|边|侧|面)"
    r"|(?P<end>[顶底]部)|(?P<under>底下|之下)|(?P<over>之上)|(?P<inside>里面|里边|里头|内部|之内|当中|之中|里|内|中))"
)
HOLDS = re.compile(r"(?:里面)?(?:包含|装着|装有|盛着|盛有)(?:着|了)?")
UNCERTAIN = re.compile(
    r"[不没未无若或镜]|如果|假如|假设|可能|也许|大概|似乎|好像|倒影|视角|角度"
    r"|描述|应该|应当|本来|原本|除了|看起来像"
)
RELATIONS = {"左": "left", "右": "right", "上": "above", "下": "below", "顶": "above", "底": "below"}
IMAGES = ("整个画面", "画面", "图片", "图像", "照片", "图中", "画幅", "图")
MEASURES = "只个条张辆把件座棵位名头匹艘架台块盏本瓶朵幅根株群排顶双间栋片杯盘碗盆"
MODIFIER = re.compile(
    rf"(?:这|那|该|一|整)?[{MEASURES}]?"
    r"(?:(?:红|橙|黄|绿|青|蓝|紫|粉|黑|白|灰|棕|褐|金|银|深|浅|彩|木|大|小|圆|方|长|高|矮|旧|新|老)色?){0,3}的?"
)
ATTRIBUTE = re.compile(MODIFIER.pattern + r"\Z")
AT = ("位于", "坐落于", "处于", "在")
BEFORE_AT = (
    "摆放", "放置", "悬挂", "出现", "高悬", "停放", "停泊", "矗立", "漂浮", "悬浮", "分布", "生长", "坐落", "安静地",
    "站", "坐", "躺", "趴", "放", "摆", "停", "挂", "蹲", "卧", "立", "飘", "靠", "飞", "铺",
    "正", "就", "则", "都", "也", "被",
)  # fmt: skip
SHOWS = re.compile(
    r"(?:则|还|便|就|正|都)?(?:是|有|为|可见|可以看到|能看到"
    r"|(?:摆放|停放|悬挂|放置|漂浮|站|坐|躺|趴|放|摆|停|挂|蹲|卧|立|飘|长|铺|装|盛)(?:着|有|了))+"
)
PLACES = ("图中", "画面中", "画面里", "图片中", "照片中")
JOINED = ("和", "与", "及", "而", "但", "跟")
AFTER_NOUN = re.compile(r"\Z|[和与及在并而且站坐躺趴]")


def statements(text: str, boxes: Boxes) -> Iterator[Stated]:
    """Yields what the text states about objects with these names."""
    names = sorted((name for name in boxes if not name.isascii()), key=len, reverse=True)
    if not names:
        return
    for sentence in SENTENCE_ENDS.split(text):
        if (SIDE.search(sentence) is None and HOLDS.search(sentence) is None) or UNCERTAIN.search(sentence):
            continue
        for clause in CLAUSE_ENDS.split(BROKEN.sub("", sentence)):
            yield from _in_clause(clause.strip(), names, text)


def _in_clause(clause: str, names: Sequence[str], text: str) -> Iterator[Stated]:
    for match in SIDE.finditer(clause):
        read = _around(clause[: match.start()], match, clause[match.end() :], names)
        if read is not None:
            subject, other = read
            yield from _stated(subject, _relations(match), other, names, text)
    for match in HOLDS.finditer(clause):
        holder, held = _subject(clause[: match.start()], names), _noun(clause[match.end() :], names)
        if holder and held:
            yield from _stated(held, ["inside"], holder, names, text)


def _relations(match: re.Match[str]) -> list[str]:
    if sides := match["corner"] or match["side"] or match["end"]:
        return [RELATIONS[side] for side in sides if side in RELATIONS]
    return ["inside" if match["inside"] else "above" if match["over"] else "below"]


def _around(before: str, match: re.Match[str], after: str, names: Sequence[str]) -> tuple[str, str | None] | None:
    """The subject and the object of a relation; the object is None for the image."""
    before = before.removesuffix("的")
    other = _ends_with(before, names)
    image = _ends_with(before, IMAGES) if other is None else None
    if image is not None and match["inside"] is None:
        rest, is_image = before[: -len(image)], True
    elif other is not None and match[0][-1] not in "部角":  # 桌子左下角 is a part of it
        rest, is_image = ATTRIBUTE.sub("", before[: -len(other)], count=1), False
    else:
        return None
    if rest.endswith(AT) and (after == "" or (is_image and after[0] in "和与")):
        subject = _located(rest, names)
    elif rest in ("", "在") and (shows := SHOWS.match(after)):
        subject = _noun(after[shows.end() :], names)
    else:
        return None
    return None if subject is None else (subject, None if is_image else other)


def _located(text: str, names: Sequence[str]) -> str | None:
    """The subject of `杯子摆放在`."""
    text = text[: -next(len(word) for word in AT if text.endswith(word))]
    while word := _ends_with(text, BEFORE_AT):
        text = text[: -len(word)]
    return _subject(text, names)


def _subject(text: str, names: Sequence[str]) -> str | None:
    """The name at the end of the text, if it is a noun phrase of its own."""
    name = _ends_with(text, names)
    if name is None:
        return None
    rest = ATTRIBUTE.sub("", text[: -len(name)], count=1)
    own = rest in ("", *PLACES) or text[: -len(name)].endswith("的") or rest.endswith(JOINED)
    return name if own else None


def _noun(text: str, names: Sequence[str]) -> str | None:
    """The name of the noun phrase that the text starts with."""
    start = 0 if (match := MODIFIER.match(text)) is None else match.end()
    for at in range(start + 1):  # 小狗 may be the name, or 狗
        name = next((name for name in names if text.startswith(name, at)), None)
        if name is not None:
            return name if AFTER_NOUN.match(text, at + len(name)) else None
    return None


def _ends_with(text: str, words: Sequence[str]) -> str | None:
    return next((word for word in words if text.endswith(word)), None)


def _stated(subject: str, relations: list[str], other: str | None, names: Sequence[str], text: str) -> Iterator[Stated]:
    meant = [name for name in names if name.endswith(subject)]
    others = None if other is None else [name for name in names if name.endswith(other)]
    if not set(meant) & set(others or ()):
        yield Stated(meant, relations, others, partial(_is_ambiguous, subject, other, text))


def _is_ambiguous(subject: str, other: str | None, text: str) -> bool:
    """Whether the text speaks of several things by one of the names, of which only one may have a box."""
    return any(_is_shared(name, text) for name in (subject, other) if name)


def _is_shared(name: str, text: str) -> bool:
    before = set()
    for match in re.finditer(re.escape(name), text):
        words = text[max(0, match.start() - 4) : match.start()]
        if re.search(rf"另|其他|(?:[两三四五六七八九十几]|第[一二三]|[左右前后]边的?)[{MEASURES}]?\Z", words):
            return True
        modifier = ATTRIBUTE.search(words)
        if modifier is not None and (bare := re.sub(rf"[的这那该一整{MEASURES}]", "", modifier[0])):
            before.add(bare)
    return len(before) > 1
