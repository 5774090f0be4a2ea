"""Paths and URLs as they are given."""

from pathlib import Path

import pytest

from vllm_annotate.storage.locations import location


@pytest.mark.parametrize(
    "url",
    ["s3://bucket/a:b@c.jsonl", "abfs://container@account.dfs.core.windows.net/a", "sftp://you@host/a", "s3://b/x@y:z"],
)
def test_a_url_without_a_password_stays_as_it_is(url: str) -> None:
    assert location(url) == url


def test_a_path_may_look_like_a_url_with_a_password() -> None:
    assert location("a:b@c/d.jsonl") == Path("a:b@c/d.jsonl")
    assert location("folder://a") == "folder://a"


@pytest.mark.parametrize("url", ["s3://id:s3cr3t@bucket/a", "sftp://u:s3cr3t@h:22/a", "https://:s3cr3t@h", "x://u:@h"])
def test_a_url_with_a_password_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValueError, match="must not contain a password") as caught:
        location(url)
    assert "s3cr3t" not in str(caught.value)
