"""`vllm-annotate`, as a module that can be run."""

from vllm_annotate.cli.start import start

if __name__ == "__main__":
    start()
