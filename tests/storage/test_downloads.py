"""Copies of inputs behind URLs."""

import threading
from pathlib import Path

from fsspec.config import conf

from tests.support.canned_http import canned_http
from vllm_annotate.storage.downloads import local_copy

ROWS = b'{"image_path": "a.jpg"}\n'


def test_a_url_of_an_input_may_redirect_and_takes_no_credentials_to_another_host(tmp_path: Path) -> None:
    with canned_http(200, ROWS) as (target, there):
        location = {"Location": f"{target.replace('127.0.0.1', 'localhost')}/captions.jsonl"}
        with canned_http(302, headers=location) as (url, here):
            conf["http"] = {"client_kwargs": {"headers": {"Authorization": "Bearer secret"}}}
            try:
                copy = local_copy(f"{url}/captions.jsonl", tmp_path, threading.Event())
            finally:
                del conf["http"]
    assert copy.read_bytes() == ROWS
    assert here[0][1]["Authorization"] == "Bearer secret"
    assert there
    assert not [headers for _, headers in there if "Authorization" in headers]
