"""What differs between two outputs, by a flow."""

from pathlib import Path

import pytest

from flows.compare import compare
from tests.conftest import ask_prefect
from tests.evaluation.scenes import write_rows, write_scenes


async def test_the_differences_and_the_verdict_are_an_artifact_of_the_run(prefect_api: str, tmp_path: Path) -> None:
    write_scenes(tmp_path, 20)
    both = {"output": tmp_path / "labeled.jsonl", "other": tmp_path / "truth.jsonl"}
    state = await compare(**both, truth=tmp_path / "truth.json", return_state=True)
    assert state.is_completed(), state.message
    assert str(state.message).startswith("labeled.jsonl and truth.jsonl: agreement 0.")
    assert "20 images compared; B is better with probability" in str(state.message)
    assert (tmp_path / "labeled.comparison.html").is_file()
    run = str(state.state_details.flow_run_id)
    (artifact,) = ask_prefect(prefect_api, "/artifacts/filter", artifacts={"flow_run_id": {"any_": [run]}})
    assert artifact["key"] == "annotate-comparison"
    assert artifact["description"] == state.message
    assert "| name | in A | in B | lost | gained | moved |" in artifact["data"]
    assert "**B is better with probability" in artifact["data"]


@pytest.mark.usefixtures("prefect_api")
async def test_without_a_truth_nothing_is_said_of_which_is_better(tmp_path: Path) -> None:
    write_scenes(tmp_path, 3)
    state = await compare(tmp_path / "labeled.jsonl", tmp_path / "truth.jsonl", return_state=True)
    assert state.is_completed(), state.message
    assert str(state.message).endswith("3 images compared")


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("none.jsonl", "none.jsonl' does not exist"),
        ("nothing://bucket/other.jsonl", "other.jsonl' is not a URL that fsspec"),
    ],
)
async def test_what_cannot_be_compared_fails_with_the_remedy(other: str, message: str, tmp_path: Path) -> None:
    output = write_rows(tmp_path / "labeled.jsonl", [{"image_path": "a", "objects": []}])
    state = await compare(output, other, return_state=True)
    assert state.is_failed()
    assert message in str(state.message)
    assert not list(tmp_path.glob("*comparison*"))
