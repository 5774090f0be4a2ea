"""The version of this project, as it was installed."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("vllm-annotate")
except PackageNotFoundError:  # run from a checkout that is not installed
    VERSION = "unknown"
