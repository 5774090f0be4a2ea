"""The installed version of vllm-annotate."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("vllm-annotate")
except PackageNotFoundError:  # a checkout that is not installed
    VERSION = "unknown"
