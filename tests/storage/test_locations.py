"""Paths and URLs as they are given."""

from pathlib import Path

import pytest

from vllm_annotate.errors import UsageError
from vllm_annotate.storage.locations import local_path, location, version_of


@pytest.mark.parametrize(
    "url",
    ["s3://bucket/a:b@c.jsonl", "abfs://container@account.dfs.core.windows.net/a", "sftp://you@host/a", "s3://b/x@y:z"],
)
def test_a_url_without_a_password_stays_as_it_is(url: str) -> None:
    assert location(url) == url


def test_a_path_may_look_like_a_url_with_a_password() -> None:
    assert location("a:b@c/d.jsonl") == Path("a:b@c/d.jsonl")
    assert location("folder://a") == "folder://a"


@pytest.mark.parametrize("where", ["s3://b/a", "https://h/a", Path("s3://b/a"), "s3://u:s3cr3t@b/a", "file:///a"])
def test_a_url_is_no_local_path_and_its_password_is_not_repeated(where: str | Path) -> None:
    with pytest.raises(UsageError, match=r"^--output '.*' is a URL, and only local files are read: download") as caught:
        local_path(where, "--output")
    assert "s3cr3t" not in str(caught.value)


def test_a_local_path_is_one_below_the_home_folder_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/you")
    assert local_path("~/a.jsonl", "--output") == Path("/home/you/a.jsonl")
    assert local_path("a:b.jsonl", "--output") == Path("a:b.jsonl")
    with pytest.raises(
        UsageError, match="--output '~nobody-here/a': the home folder of '~nobody-here/a' does not exist: write"
    ):
        local_path("~nobody-here/a", "--output")


@pytest.mark.parametrize("url", ["s3://id:s3cr3t@bucket/a", "sftp://u:s3cr3t@h:22/a", "https://:s3cr3t@h", "x://u:@h"])
def test_a_url_with_a_password_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValueError, match="must not contain a password") as caught:
        location(url)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("name", ["ETag", "etag", "mtime", "LastModified", "last_modified", "Last-Modified", "blob_id"])
def test_an_object_that_was_written_again_has_another_version_in_any_drivers_words(name: str) -> None:
    assert version_of({"size": 1, name: "a"}) != version_of({"size": 1, name: "b"})
