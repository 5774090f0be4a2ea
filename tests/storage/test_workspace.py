"""Files of a run: names, lock, recipe guard, atomic writes."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vllm_annotate.errors import UsageError
from vllm_annotate.inputs.listing import list_inputs
from vllm_annotate.recipe.guard import guard_recipe, record_recipe
from vllm_annotate.results.audited import audit_file
from vllm_annotate.results.reviewed import reviewed_file
from vllm_annotate.storage.atomic import read_json, replacing, write_json
from vllm_annotate.storage.workspace import FOLDER_FORMAT, FORMAT, Workspace, own_paths

SETTINGS = {"model": "m", "temperature": 0.0}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.at(tmp_path / "labeled.jsonl")


def test_the_promised_names(workspace: Workspace, tmp_path: Path) -> None:
    assert workspace.failures == tmp_path / "labeled.failures.jsonl"
    assert workspace.report == tmp_path / "labeled.report.json"
    assert workspace.work == tmp_path / "labeled.work"


def test_two_spellings_of_one_output_are_one_workspace(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert Workspace.at(tmp_path / "link" / "a.jsonl") == Workspace.at(tmp_path / "real" / ".." / "real" / "a.jsonl")


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ""])
def test_what_is_written_about_an_output_is_beside_it_by_whatever_name_it_is_called(
    ending: str, tmp_path: Path
) -> None:
    (tmp_path / "real").mkdir()
    output = tmp_path / "real" / f"labeled.v2{ending}"
    output.touch()
    (tmp_path / "folder").symlink_to(tmp_path / "real")
    (tmp_path / "other.jsonl").symlink_to(output)
    of_output = Workspace(tmp_path / "real" / "labeled.v2.jsonl")
    for name in (output, tmp_path / "folder" / output.name, tmp_path / "other.jsonl"):
        assert Workspace.of_file(name) == of_output
        assert audit_file(name) == of_output.audited == tmp_path / "real" / "labeled.v2.audit.jsonl"
        assert reviewed_file(name) == of_output.reviewed == tmp_path / "real" / "labeled.v2.reviewed.jsonl"
    assert of_output.sweep == tmp_path / "real" / "labeled.v2.sweep"
    assert of_output.asked_again == tmp_path / "real" / "labeled.v2.audit"
    assert [path.name for path in of_output.figures("audit")] == ["labeled.v2.audit.json", "labeled.v2.audit.html"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json.jsonl", "a.gz.jsonl", "a.jsonl.jsonl", ".jsonl.jsonl"])
def test_an_output_has_one_workspace_whether_it_is_written_or_read(name: str, tmp_path: Path) -> None:
    assert Workspace.of_file(tmp_path / name) == Workspace.at(tmp_path / name)


def test_a_second_process_is_refused_while_the_first_holds_the_lock(workspace: Workspace) -> None:
    program = "import sys; from vllm_annotate.storage.workspace import Workspace\n"
    program += "with Workspace.at(sys.argv[1]).locked(): print('in')"
    command = [sys.executable, "-c", program, str(workspace.output)]
    with workspace.locked():
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert f"another run (process {os.getpid()} on " in second.stderr
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "in\n"


def test_a_workspace_that_was_only_opened_leaves_nothing_behind(workspace: Workspace, tmp_path: Path) -> None:
    with workspace.locked():
        assert workspace.work.exists()
    assert list(tmp_path.iterdir()) == []


def test_the_same_recipe_may_resume_and_another_is_refused(workspace: Workspace) -> None:
    with workspace.locked():
        record_recipe(workspace, SETTINGS, "one")
        workspace.output.write_text('{"image_path": "a"}\n')
        guard_recipe(workspace, SETTINGS, "one")
        with pytest.raises(UsageError, match=r"another recipe \(temperature: 0.0 → 0.5\).*delete .*recipe.json"):
            guard_recipe(workspace, SETTINGS | {"temperature": 0.5}, "two")


def test_a_recipe_that_has_written_nothing_yet_may_change(workspace: Workspace) -> None:
    with workspace.locked():
        record_recipe(workspace, SETTINGS, "one")
        workspace.output.touch()
        guard_recipe(workspace, SETTINGS, "two")


def test_an_output_named_like_a_failures_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"without \.failures"):
        Workspace.at(tmp_path / "labeled.failures.jsonl")


def test_an_output_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "secret.jsonl"
    path.write_text("old")
    path.chmod(0o600)
    with replacing(path) as file:
        file.write(b"new")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", 0o600)


def test_an_output_of_an_older_script_is_accepted(workspace: Workspace) -> None:
    workspace.output.write_text('{"image_path": "a"}\n')
    with workspace.locked():
        guard_recipe(workspace, SETTINGS, "one")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"null"])
def test_a_torn_json_file_does_not_count_as_missing(tmp_path: Path, content: bytes) -> None:
    assert read_json(tmp_path / "a.json") is None
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError):  # noqa: PT011 - each says it otherwise
        read_json(tmp_path / "a.json")


def test_json_is_written_whole_and_readable(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"名": "猫"})
    assert read_json(tmp_path / "a.json") == {"名": "猫"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_refused_run_keeps_the_log_of_a_server_that_did_not_start(workspace: Workspace) -> None:
    with workspace.locked():
        workspace.logs.mkdir()
        (workspace.logs / "vllm.log").write_text("why")
    assert (workspace.logs / "vllm.log").read_text() == "why"


@pytest.mark.parametrize("torn", [b"", b'{"fingerprint": "o', b"[]", b'{"settings": {}}', b'{"fingerprint": "one"}'])
def test_a_damaged_recipe_does_not_allow_mixing_recipes(workspace: Workspace, torn: bytes) -> None:
    with workspace.locked():
        record_recipe(workspace, SETTINGS, "one")
        workspace.recipe.write_bytes(torn)
        guard_recipe(workspace, SETTINGS, "two")  # nothing is written yet
        workspace.output.write_text('{"image_path": "a"}\n')
        for recipe in ("one", "two"):
            with pytest.raises(UsageError, match=r"recipe.json is damaged .*restore it, choose another --output, or"):
                guard_recipe(workspace, SETTINGS, recipe)


@pytest.mark.parametrize("written", ["3\n", "999999999999999999999\n", "", "one", "1.5", "-1", "²"])
def test_a_work_folder_of_a_later_version_is_refused(workspace: Workspace, written: str) -> None:
    with workspace.locked():
        record_recipe(workspace, SETTINGS, "one")
        assert workspace.format.read_text() == f"{FORMAT}\n"
    workspace.format.write_text(written)
    with (
        pytest.raises(UsageError, match=f"has format .* this version supports formats up to {FOLDER_FORMAT}"),
        workspace.locked(),
    ):
        pass
    workspace.format.unlink()  # as an earlier version wrote it
    with workspace.locked():
        pass


@pytest.mark.parametrize("stem", ["x" * 241, "图" * 80 + "x", "é" * 121])
def test_an_output_whose_other_files_would_have_too_long_names_is_refused_at_once(tmp_path: Path, stem: str) -> None:
    too_long = len(stem.encode()) + len(".failures.jsonl") - 255
    with pytest.raises(UsageError, match=rf"too long: .* allows 255; make it {too_long} bytes shorter"):
        Workspace.at(tmp_path / f"{stem}.jsonl")


def test_the_longest_accepted_name_works_to_the_end(tmp_path: Path) -> None:
    workspace = Workspace.at(tmp_path / f"{'图' * 80}.jsonl")
    with workspace.locked():
        record_recipe(workspace, SETTINGS, "one")
        for path in (workspace.output, workspace.failures, workspace.report, workspace.page):
            with replacing(path) as file:
                file.write(b"x")
    with pytest.raises(UsageError, match="too long"):
        Workspace.at(tmp_path / (("f" * 200 + "/") * 20) / "a.jsonl")
    with pytest.raises(UsageError, match="too long"):
        Workspace.at(Path("x" * 5000 + ".jsonl"))


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


MAKE: dict[str, Callable[[Path], None]] = {
    "a named pipe": os.mkfifo, "a directory": Path.mkdir, "a socket": make_socket,
    "a device": lambda path: path.symlink_to("/dev/null"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "make"), MAKE.items(), ids=MAKE)
@pytest.mark.parametrize(
    ("shard", "name"),
    [
        ("", "labeled.jsonl"), ("", "labeled.failures.jsonl"), ("", "labeled.report.json"), ("", "labeled.report.html"),
        ("1/2", "labeled.shards/1-of-2.jsonl"),
    ],
)  # fmt: skip
def test_a_file_of_the_run_that_is_no_regular_file_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, make: Callable[[Path], None], shard: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    Path(name).parent.mkdir(exist_ok=True)
    make(Path(name))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError) as refused:
        Workspace.at("labeled.jsonl", shard)
    ours = f"{tmp_path / name} is {kind}: remove it, or choose another --output"
    of_the_output = {"a directory": "is a directory: name a file in it", "a device": "is a file without an ending"}
    assert str(refused.value) == ours or of_the_output.get(kind, ours) in str(refused.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_work_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labeled.work").touch()
    with pytest.raises(UsageError, match=r"labeled\.work is no directory: remove it, or choose another --output"):
        Workspace.at(tmp_path / "labeled.jsonl")


def test_a_lock_file_that_is_a_pipe_is_refused_with_the_reason(workspace: Workspace) -> None:
    workspace.work.mkdir()
    os.mkfifo(workspace.work / "lock")
    with pytest.raises(UsageError, match=r"cannot write beside output .*: \w[\w ]+ \(.*/lock\)"), workspace.locked():
        pass


def touched(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}\n")


OF_A_RUN = ["labeled/0.jsonl", "labeled.work/finished.jsonl"]
OF_A_PILOT = ["labeled-pilot/0.jsonl", "labeled-pilot.work/finished.jsonl", "labeled-pilot.failures.jsonl"]
OF_A_SWEEP = ["labeled.sweep/a/0.jsonl", "labeled.sweep/a.work/finished.jsonl", "labeled.sweep/b.work/finished.jsonl"]


@pytest.mark.parametrize("output", ["labeled", "labeled-pilot", "labeled.sweep/a", "labeled.sweep/c"])
@pytest.mark.parametrize("there", [OF_A_RUN, OF_A_PILOT, OF_A_SWEEP, OF_A_RUN + OF_A_PILOT + OF_A_SWEEP])
def test_what_a_run_its_pilot_or_its_sweep_wrote_is_no_input_of_any_of_them(
    there: list[str], output: str, tmp_path: Path
) -> None:
    touched(tmp_path, "0.jsonl", *there)
    assert [file.name for file in list_inputs(tmp_path, own_paths(tmp_path / output)).files] == ["0.jsonl"]


def test_folders_with_names_of_ours_may_be_inputs(tmp_path: Path) -> None:
    touched(tmp_path, "data.sweep/0.jsonl", "data/0.jsonl")
    for given, output in (("data.sweep", "data.sweep/labeled"), ("data", "data-pilot")):
        files = list_inputs(tmp_path / given, own_paths(tmp_path / output)).files
        assert [file.name for file in files] == ["0.jsonl"]
