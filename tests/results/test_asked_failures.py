"""Failures that are asked again leave the failures file before their answers can reach the output."""

import json
from pathlib import Path

from tests.support.stores import Store
from vllm_annotate.results.asked_failures import put_back_asked, take_out_asked


def failing(store: Store, *paths: str) -> None:
    lines = [json.dumps({"image_path": path, "failure": {"kind": "timeout"}}) + "\n" for path in paths]
    store.workspace.failures.write_text("".join(lines))


def failed(store: Store) -> list[str]:
    return list(store.failures())


def test_planned_images_leave_the_file_and_return_if_they_have_no_answer(tmp_path: Path) -> None:
    store = Store(tmp_path, 3)
    failing(store, "elsewhere.jpg", "0.jpg", "1.jpg")
    take_out_asked(store.workspace)
    assert failed(store) == ["elsewhere"]
    store.workspace.output.write_text('{"image_path": "1.jpg"}\n')
    put_back_asked(store.workspace)
    assert failed(store) == ["elsewhere", "0"]
    assert not store.workspace.asked_failures.exists()


def test_a_file_of_planned_images_alone_is_absent_meanwhile(tmp_path: Path) -> None:
    store = Store(tmp_path, 2)
    failing(store, "0.jpg", "1.jpg")
    take_out_asked(store.workspace)
    assert not store.workspace.failures.exists()
    put_back_asked(store.workspace)
    assert failed(store) == ["0", "1"]


def test_a_kill_between_the_two_files_repeats_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path, 2)
    failing(store, "0.jpg", "1.jpg")
    before = store.workspace.failures.read_bytes()
    take_out_asked(store.workspace)
    store.workspace.failures.write_bytes(before)
    put_back_asked(store.workspace)
    assert store.workspace.failures.read_bytes() == before


def test_without_planned_images_the_file_is_not_touched(tmp_path: Path) -> None:
    store = Store(tmp_path, 2)
    failing(store, "elsewhere.jpg")
    before = store.workspace.failures.stat()
    take_out_asked(store.workspace)
    assert store.workspace.failures.stat() == before
    assert not store.workspace.asked_failures.exists()
