"""`python -m flows.serving`, the old name of `vllm-annotate check-server`."""

if __name__ == "__main__":
    from vllm_annotate.cli.start import start

    start("check-server")
