"""The scores of an output, by a flow."""

from pathlib import Path

import pytest

from flows.evaluate import evaluate
from tests.conftest import ask_prefect
from tests.evaluation.scenes import write_rows, write_scenes


async def test_the_scores_are_an_artifact_of_the_run(prefect_api: str, tmp_path: Path) -> None:
    write_scenes(tmp_path, 20)
    (tmp_path / "synonyms.yaml").write_text("- [cat, <b>cat</b>]\n")
    state = await evaluate(
        output=tmp_path / "labeled.jsonl",
        truth=tmp_path / "truth.json",
        synonyms=tmp_path / "synonyms.yaml",
        return_state=True,
    )
    assert state.is_completed(), state.message
    assert str(state.message).startswith("labeled.jsonl: F1 0.")
    assert (tmp_path / "labeled.evaluation.html").is_file()
    run = str(state.state_details.flow_run_id)
    (artifact,) = ask_prefect(prefect_api, "/artifacts/filter", artifacts={"flow_run_id": {"any_": [run]}})
    assert artifact["key"] == "annotate-evaluation"
    assert artifact["description"] == state.message
    assert "| precision | " in artifact["data"]
    assert "20 images scored" in artifact["data"]


@pytest.mark.usefixtures("prefect_api")
async def test_files_may_be_named_from_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scenes(tmp_path, 3)
    monkeypatch.setenv("HOME", str(tmp_path))
    state = await evaluate("~/labeled.jsonl", "~/truth.json", return_state=True)
    assert state.is_completed(), state.message
    assert (tmp_path / "labeled.evaluation.html").is_file()


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize(
    ("truth", "message"),
    [("none.jsonl", "none.jsonl' does not exist"), ("s3://bucket/truth.json", "download it first")],
)
async def test_what_cannot_be_scored_fails_with_the_remedy(truth: str, message: str, tmp_path: Path) -> None:
    output = write_rows(tmp_path / "labeled.jsonl", [{"image_path": "a", "objects": []}])
    state = await evaluate(output=output, truth=truth, return_state=True)
    assert state.is_failed()
    assert message in str(state.message)
