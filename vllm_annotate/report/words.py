"""The words of the pages in two languages. Templates and code have the English ones; # stands for a number."""

import re
from collections.abc import Callable
from typing import Literal

Language = Literal["en", "zh"]
NUMBER = re.compile(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?")

CHINESE = {
    # header
    "Annotations of …": "… 的标注",
    ", ": "，",
    "input": "输入",
    "recipe": "配方",
    "the built-in English prompt": "内置英文提示词",
    "the built-in Chinese prompt": "内置中文提示词",
    "a prompt of your own": "自定义提示词",
    "answers follow a JSON schema": "答案遵循 JSON Schema",
    "answers in any form": "答案格式不限",
    "temperature #": "温度 #",
    "at most # tokens and # objects": "最多 # 个 token、# 个物体",
    "images of # to # visual tokens": "图片占 # 至 # 个视觉 token",
    "The answers come from a stand-in, not from a model": "答案来自替身服务器，而不是模型",
    "Chunks that did not finish": "未完成的分块",
    # figures of the output
    "images annotated": "已标注图片",
    "flagged": "有标记",
    "without annotation": "无标注",
    "failed": "失败",
    "objects an image": "每图物体数",
    "different names": "不同名称",
    # estimate
    "Estimate for the other # images": "其余 # 张图片的预估",
    "from # of this run": "基于本次运行的 # 张图片",
    "time": "时间",
    "GPU hours": "GPU 小时",
    "tokens of prompts": "提示词 token",
    "tokens of answers": "答案 token",
    "# million": "# 百万",
    "disk": "磁盘",
    # gallery
    "Images": "图片",
    "doubtful ones first": "可疑的在前",
    "Show": "显示",
    "Show all # images": "显示全部 # 张图片",
    "all": "全部",
    "nothing flagged": "无标记",
    "no annotation": "无标注",
    "no image": "无图片",
    "(no name)": "（无名称）",
    "boxes": "个框",
    "caption": "描述",
    "rationale": "理由",
    "raw model output": "模型原始输出",
    "No answers or failures to show.": "没有可显示的答案或失败。",
    "# more images are omitted to keep this page under # MB.": "另有 # 张图片未显示，以使页面小于 # MB。",
    # quality
    "Quality": "质量",
    "of a sample of # answers": "基于 # 个答案的抽样",
    "Flags": "标记",
    "Failures": "失败",
    "Names": "名称",
    "and # more": "以及另外 # 个",
    "Where boxes lie": "框的位置",
    "by their centres": "按中心点",
    "Objects in an image": "每张图片的物体数",
    "Answers parsed as": "答案解析方式",
    "top left": "左上",
    "top centre": "上方中间",
    "top right": "右上",
    "middle left": "左侧",
    "middle centre": "正中",
    "middle right": "右侧",
    "bottom left": "左下",
    "bottom centre": "下方中间",
    "bottom right": "右下",
    # run
    "The last run": "最近一次运行",
    "The run of … had nothing to do; these are the figures of the last one that had.": (
        "… 的运行没有需要处理的图片；以下是此前有图片可处理的最近一次运行的数据。"
    ),
    "answered": "已回答",
    "already answered": "此前已回答",
    "images per second": "图片/秒",
    "tokens per second": "token/秒",
    "took": "用时",
    "Bottleneck": "瓶颈",
    "What to do": "建议",
    "Share of the time": "时间占比",
    "GPUs and servers": "GPU 与服务器",
    "Proof": "验证",
    "The charts are in the reports of the shards": "图表见各分片的报告",
    "The run was too short for a chart.": "运行时间太短，没有图表。",
    "Made by": "生成方式",
    "revision": "修订版",
    "from": "自",
    "to": "至",
    "it sees what it should: # token counts match a grid of # pixels": "所见与预期一致：# 个 token 数符合 # 像素的网格",
    "images within the budget are sent as they are": "预算以内的图片原样发送",
    "images are resized here": "图片在本机缩放",
    "its boxes are proven: mean IoU # on # drawn scenes": "其框已得到验证：平均 IoU #（# 个绘制场景）",
    "canaries during the run: #, none wrong": "运行期间的抽查：# 次，均正确",
    # charts
    "GPU utilisation": "GPU 利用率",
    "GPU memory": "GPU 显存",
    "GPU power": "GPU 功率",
    "Requests": "请求",
    "KV cache": "KV 缓存",
    "Tokens generated per second": "每秒生成的 token",
    "Images per second": "每秒图片数",
    "in flight": "进行中",
    "running": "运行中",
    "waiting": "等待中",
    # tables
    "GPU": "GPU",
    "server": "服务器",
    "busy": "利用率",
    "memory": "显存",
    "power": "功率",
    "hottest": "最高温度",
    "power cap": "功率受限",
    "throttled": "过热降频",
    "energy": "能耗",
    "tokens/s": "token/秒",
    "queued": "排队",
    "latency": "延迟",
    # bottlenecks
    "this machine prepares images too slowly": "本机准备图片太慢",
    "vLLM's front end": "vLLM 的前端",
    "vLLM's limit of running sequences": "vLLM 的并行序列上限",
    "the KV cache": "KV 缓存",
    "GPU compute": "GPU 算力",
    "max_concurrency": "max_concurrency",
    "the server was down, or declined requests": "服务器不可用或拒绝了请求",
    "nothing: no images were left": "无：没有剩余图片",
    "auto concurrency was still ramping up": "自动并发仍在爬升",
    "unknown: the server has no metrics of its own": "未知：服务器没有自己的指标",
    "the run was too short to tell": "运行时间太短，无法判断",
    "the run ended before the first sample": "运行在第一次采样前就结束了",
    "GPU # %": "GPU # %",
    "in flight # of at most #": "进行中 #，上限 #",
    "running #, waiting #": "运行中 #，等待中 #",
    "KV cache # %": "KV 缓存 # %",
    "# requests ready to be sent": "# 个请求待发送",
    "this process used # of # cores": "本进程使用 # 个核（共 # 个）",
    "# ms to prepare each image": "准备每张图片 # 毫秒",
    "nothing: a run of a few seconds is too short to measure": "无：几秒钟的运行太短，无法测量",
    "nothing: all requests were sent, and the run waited for the last answers": (
        "无：所有请求均已发送，只是在等待最后的答案"
    ),
    "the run was too short for auto to settle: set max_concurrency to a number, or annotate more per run": (
        "运行太短，自动并发未能稳定：请将 max_concurrency 设为数字，或每次标注更多图片"
    ),
    "the server has no /metrics of its own: name each vLLM server as an endpoint instead of a gateway": (
        "服务器没有自己的 /metrics：请逐一填写 vLLM 服务器的地址，而不是网关"
    ),
    "requests wait although the KV cache has room: raise --max-num-seqs, or --max-num-batched-tokens if that limit "
    "is not reached (start.extra_arguments)": (
        "KV 缓存尚有空间，请求却在等待：请调高 --max-num-seqs；"
        "若未达到该上限，则调高 --max-num-batched-tokens（start.extra_arguments）"
    ),
    "endpoints did not answer, or declined requests: check the server's log, add an endpoint, or lower "
    "max_concurrency if the server was overloaded": (
        "服务器没有应答或拒绝了请求：请查看服务器日志、增加服务器，或在过载时调低 max_concurrency"
    ),
    "the GPUs are busy: use more GPUs, a smaller or quantized model, or smaller images (max_visual_tokens); a higher "
    "concurrency does not help": (
        "GPU 已满负荷：请使用更多 GPU、更小或量化的模型，或更小的图片（max_visual_tokens）；提高并发没有帮助"
    ),
    "the KV cache is full while requests wait: raise gpu_memory_utilization, store the cache in 8 bits "
    "(--kv-cache-dtype fp8), or use fewer tokens per request (max_visual_tokens, max_tokens)": (
        "KV 缓存已满而请求在等待：请调高 gpu_memory_utilization，使用 8 位缓存（--kv-cache-dtype fp8），"
        "或减少每个请求的 token（max_visual_tokens、max_tokens）"
    ),
    "vLLM's CPU holds requests back before the engine or between its steps: use more servers "
    "(start.data_parallel_size, or more endpoints), or send smaller images (max_visual_tokens)": (
        "vLLM 的 CPU 在引擎之前或步骤之间拖慢了请求：请使用更多服务器（start.data_parallel_size 或更多地址），"
        "或发送更小的图片（max_visual_tokens）"
    ),
}


def translator(language: Language) -> Callable[[str], str]:
    """Returns a function from English words to the language's; unknown words stay as they are."""
    return _chinese if language == "zh" else lambda words: words


def _chinese(words: str) -> str:
    if words in CHINESE:
        return CHINESE[words]
    if words.startswith("failed: "):
        return words.replace("failed: ", "失败：", 1)
    pattern = CHINESE.get(NUMBER.sub("#", words))
    if pattern is not None:
        numbers = iter(NUMBER.findall(words))
        return re.sub("#", lambda _: next(numbers, ""), pattern)
    if "; " in words:
        return "；".join(map(_chinese, words.split("; ")))
    return words
