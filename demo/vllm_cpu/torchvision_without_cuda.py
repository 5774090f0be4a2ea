"""Makes a CUDA-built torchvision importable with a CPU-only torch.

Its compiled part links CUDA and does not load, so `import torchvision` fails with "operator torchvision::nms does not
exist". Declaring that operator first is enough: vLLM uses only the transforms, which are plain Python.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType


class _DeclareOperators(importlib.abc.MetaPathFinder):
    """Declares torchvision's operators just before another finder imports torchvision."""

    def __init__(self) -> None:
        self._library: object = None  # keeps the declarations alive

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Never finds anything itself."""
        if fullname == "torchvision" and self._library is None:
            import torch

            if torch.version.cuda is None:
                library = torch.library.Library("torchvision", "DEF")
                library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
                library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
                self._library = library
        return None


sys.meta_path.insert(0, _DeclareOperators())
