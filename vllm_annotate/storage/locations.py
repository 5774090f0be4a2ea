"""Local paths, and URLs of object stores, which fsspec reads and writes."""

import errno
import hashlib
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from fsspec import AbstractFileSystem
from fsspec.config import conf as fsspec_settings
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from pydantic import BeforeValidator, WithJsonSchema

from vllm_annotate.errors import ImageFailure, UsageError
from vllm_annotate.printable import printable
from vllm_annotate.storage.masking import PASSWORD_IN_URL

# Error codes of a refusal that may concern one object only; all others concern the key or the clock.
OF_THE_OBJECT = ("AccessDenied", "Forbidden", "403", "InvalidObjectState", None)
READERS = 32  # images read at once: each mostly waits for the network
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
URL_AS_PATH = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")  # with one slash less


def local_path(where: str | Path, option: str, why: str = "only local files are read: download it first") -> Path:
    """Returns the path of a file, with the home folder for ~. Raises UsageError for a URL, and says why."""
    text = str(where)
    if URL_AS_PATH.match(text):
        raise UsageError(f"{option} {without_login(text)!r} is a URL, and {why}")
    try:
        return Path(location(where)).expanduser()
    except ValueError as error:
        raise UsageError(f"{option} {text!r}: {error}") from None


def without_login(text: str) -> str:
    """Returns a location as messages may show it: before an @ there may be a password."""
    return f"{text.partition(':')[0]}://…" if URL_AS_PATH.match(text) and "@" in text else text


def local_paths(given: Mapping[str, Path | str | None]) -> dict[str, Path]:
    """Returns the paths of the parameters that are given, by their names. Raises UsageError for a URL."""
    return {name: local_path(where, name) for name, where in given.items() if where is not None}


def location(value: Any) -> Any:
    """Returns a URL of an object store unchanged, and a local file, `file:///…` included, as a path.

    Raises ValueError for an invalid path.
    """
    if not isinstance(value, str | Path):
        raise ValueError("it must be a text, a path or a URL: quote it in YAML")  # noqa: TRY004 - pydantic takes this
    if not str(value).strip():
        raise ValueError("it is empty: write a path or a URL")  # as a path, it would be the current folder
    try:
        str(value).encode()
        Path(value).expanduser()
    except UnicodeEncodeError:
        raise ValueError(f"the name {str(value)!r} is not UTF-8: rename the file or folder") from None
    except RuntimeError:
        raise ValueError(f"the home folder of {str(value)!r} does not exist: write the full path") from None
    if isinstance(value, Path):
        return value
    if value.startswith("file://"):
        return Path(url2pathname(urlsplit(value).path))
    if URL.match(value) and PASSWORD_IN_URL.search(value):
        raise ValueError(
            "a URL must not contain a password, as logs and files of the run would show it: write the URL without it, "
            "and set the credentials in the environment or in fsspec's configuration (~/.config/fsspec)"
        )
    return value if URL.match(value) else Path(value)


ONE_FIELD = {"type": "string", "format": "path"}  # of text in the form of the Prefect UI
Location = Annotated[Path | str, BeforeValidator(location), WithJsonSchema(ONE_FIELD)]


def output_location(value: Any) -> Any:
    """Returns the location of an output: of a folder in an object store without the slash at its end."""
    found = location(value)
    return found.rstrip("/") if isinstance(found, str) else found


Output = Annotated[Path | str, BeforeValidator(output_location), WithJsonSchema(ONE_FIELD)]
OptionalLocation = Annotated[
    Path | str | None,
    BeforeValidator(lambda value: None if value in (None, "") else location(value)),
    WithJsonSchema(ONE_FIELD),
]
WILD = re.compile(r"[*?\[]")  # in a pattern, or in the name of a file


def locations(value: Any) -> Any:
    """Returns one location, or a list of several. Raises ValueError for an invalid one."""
    if not isinstance(value, list):
        return location(value)
    if not value:
        raise ValueError("it is an empty list: write a path or a URL")
    found = [location(each) for each in value]
    return found if len(found) > 1 else found[0]


Given = Annotated[Path | str | list[Path | str], BeforeValidator(locations), WithJsonSchema(ONE_FIELD)]


def name_of(where: Path | str) -> str:
    """Returns the last part of a path or URL."""
    return str(where).rstrip("/").rpartition("/")[2]


def run_name(parameters: Mapping[str, Any]) -> str:
    """Returns the name of a run with these parameters, such as `labeled.jsonl, shard 3/16, on gpu-1`."""
    shard = f", shard {parameters['shard']}" if parameters.get("shard") else ""
    return printable(f"{name_of(parameters['output'])}{shard}, on {platform.node()}")


def file_system(url: str) -> tuple[AbstractFileSystem, str]:
    """Returns the file system of a URL and the path in it. Raises UsageError for an invalid URL or missing driver."""
    try:
        # Cached listings would hide what others write.
        fs, path = url_to_fs(url, use_listings_cache=False, **_connections(url))
    except ImportError as error:
        raise UsageError(
            f"{url!r} needs a driver ({error}): pip install 'vllm-annotate[s3]' for s3://, else the fsspec driver of "
            "that store"
        ) from None
    except ValueError as error:
        raise UsageError(f"{url!r} is not a URL that fsspec supports: {error}") from None
    if isinstance(fs, LocalFileSystem) or not path.strip("/"):
        raise UsageError(f"{url!r} has no bucket: write a URL such as s3://bucket/folder/labeled.jsonl")
    return fs, str(path)


def _connections(url: str) -> dict[str, Any]:
    """Returns options that allow a connection per reader; botocore's default is ten. The user's settings win."""
    if not url.startswith(("s3://", "s3a://")) or "config_kwargs" in fsspec_settings.get("s3", {}):
        return {}
    return {"config_kwargs": {"max_pool_connections": READERS}}


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Turns other exceptions of drivers (no credentials, no connection) into an OSError that names the URL."""
    try:
        yield
    except (OSError, UsageError, ImageFailure):
        raise
    except Exception as error:  # each driver has its own exceptions
        raise OSError(errno.EIO, f"{type(error).__name__}: {error!s:.300}", url) from None


def unreachable(url: str, error: OSError) -> UsageError:
    """Returns the error for a URL that a run cannot reach at its start."""
    return UsageError(
        f"{url} cannot be reached: {error.strerror or error}; check the credentials and the endpoint in the "
        "environment, for s3:// AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL, or in AWS's "
        "configuration files"
    )


def identity_of(fs: AbstractFileSystem, *names: str) -> str:
    """Returns a hash of names and the store's endpoint: two stores can have buckets of the same name."""
    return hashlib.blake2b(" ".join([*filter(None, names), *_endpoint(fs)]).encode(), digest_size=8).hexdigest()


def _endpoint(fs: AbstractFileSystem) -> list[str]:
    """Returns the endpoint of a store, unless it is the default one, without a request to it."""
    options = fs.storage_options
    if "s3" not in fs.protocol:
        return [str(options[name]) for name in ("endpoint_url", "account_name") if options.get(name)]
    from botocore.session import Session  # of the extra s3

    given = options.get("endpoint_url") or options.get("client_kwargs", {}).get("endpoint_url")
    # Keys and region do not matter here, but botocore would look for them in the network.
    session = Session(profile=options.get("profile"))
    no_keys = {"aws_access_key_id": "-", "aws_secret_access_key": "-"}
    client = session.create_client("s3", "us-east-1", endpoint_url=given, **no_keys)
    url = str(client.meta.endpoint_url)
    return [] if (urlsplit(url).hostname or "").endswith(".amazonaws.com") else [url]


def version_of(info: dict[str, Any]) -> str:
    """Returns the version of an object: its ETag, or size and times if it has none. Drivers name them otherwise."""
    if "ETag" in info:
        return str(info["ETag"])
    names = ("size", "mtime", "created", "LastModified", "updated")
    if not any(info.get(name) for name in names[1:]):
        names = ("size", "etag", "last_modified", "Last-Modified", "blob_id")  # Azure, HTTP, Hugging Face
    return "-".join(str(info.get(name)) for name in names)


def error_code(error: OSError) -> str | None:
    """Returns the error code of S3."""
    response = getattr(error.__cause__, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None


def first_object(pattern: str) -> bytes:
    """Returns the content of the first object with such a name; empty if there is none. Raises OSError likewise."""
    fs, path = file_system(pattern)
    with reaching(pattern):
        names = sorted(fs.glob(path))
        return bytes(fs.cat_file(names[0])) if names else b""


def read_object(url: str) -> bytes:
    """Returns the content of a small object; empty if it does not exist. Raises OSError if the store is at fault."""
    fs, path = file_system(url)
    try:
        with reaching(url):
            return bytes(fs.cat_file(path))
    except FileNotFoundError:
        return b""
