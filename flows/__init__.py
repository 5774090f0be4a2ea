"""The Prefect flows: one module each."""

from vllm_annotate.own_packages import check_own_packages

check_own_packages()  # a project's own blocks/ would end in an import error that does not name it
