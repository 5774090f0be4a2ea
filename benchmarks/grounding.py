"""Measures the time to parse an answer, clean (1 to 30 objects) or malformed: `python -m benchmarks.grounding`."""

import json
import random
import statistics
import time
from collections.abc import Callable
from contextlib import suppress

from stand_in.ugly_answers import HEIGHT, WIDTH, corpus
from vllm_annotate.errors import UnparsableAnswer
from vllm_annotate.grounding.parse import parse_answer
from vllm_annotate.recipe.families import FAMILIES

ROUNDS = 20


def milliseconds(read: Callable[[], object]) -> float:
    """The median over several rounds."""
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        with suppress(UnparsableAnswer):
            read()
        times.append((time.perf_counter() - started) * 1000)
    return statistics.median(times)


def clean_text(rng: random.Random, objects: int) -> str:
    """A clean answer of Qwen2.5-VL."""
    items = []
    for number in range(objects):
        box = [rng.randint(0, 200), rng.randint(0, 200), rng.randint(300, 500), rng.randint(300, 400)]
        items.append({"bbox_2d": box, "label": f"thing {number % 10}"})
    return json.dumps({"rationale": "Where things are. " * 20, "objects": items})


def main() -> None:
    """Prints medians and spreads over the answers."""
    rng = random.Random(0)
    family = FAMILIES["qwen2.5-vl"]
    clean = [clean_text(rng, rng.randint(1, 30)) for _ in range(100)]
    figures = {
        "clean": [milliseconds(lambda text=text: parse_answer(text, family, WIDTH, HEIGHT)) for text in clean],  # type: ignore[misc]
        "ugly": [
            milliseconds(lambda case=case: parse_answer(case.text, FAMILIES[case.family], WIDTH, HEIGHT))  # type: ignore[misc]
            for case in corpus()
        ],
    }
    for kind, times in figures.items():
        median, spread = statistics.median(times), f"{min(times):.3f}–{max(times):.3f}"
        print(f"{kind:5} {len(times)} answers: median {median:.3f} ms ({spread})")


if __name__ == "__main__":
    main()
