"""`python -m flows.reparse`, the old name of `vllm-annotate reparse`."""

if __name__ == "__main__":
    from vllm_annotate.cli.start import start

    start("reparse")
