"""`python -m flows.merge_shards`, the old name of `vllm-annotate merge-shards`."""

if __name__ == "__main__":
    from vllm_annotate.cli.start import start

    start("merge-shards")
