"""The command line: `vllm-annotate COMMAND`."""
