"""Which recipes, models and servers made an output."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blocks import AnnotationRecipe
from stand_in.process import StandIn
from tests.conftest import Job
from tests.flows.test_annotate import annotate
from vllm_annotate.results.provenance import made_by, maker, makers_in

HASH = "cc594898137f460bfe9f0759e9844b3ce807cfb5"


def made(recipe: str = "one", at: str = "2026-01-01", **server: str) -> dict[str, Any]:
    return maker(recipe, {"temperature": 0}, "m", {"http://a/v1": server}, at)


def test_a_maker_names_recipe_model_revision_and_versions() -> None:
    root = f"/hub/models--Qwen--Qwen2.5-VL-7B-Instruct/snapshots/{HASH}"
    found = made(version="0.32.0", model_root=root)
    assert (found["model_revision"], found["model_root"], found["vllm"]) == (HASH, root, ["0.32.0"])
    assert made(model_root="/models/mine")["model_revision"] is None
    assert made()["vllm"] == []


def test_each_maker_is_listed_once_with_its_period() -> None:
    first, again, other = made(at="2026-01-02"), made(at="2026-01-01"), made("two", at="2026-01-03")
    makers = made_by([first], [other, again])
    assert [(each["recipe"], each["first"], each["last"]) for each in makers] == [
        ("one", "2026-01-01", "2026-01-02"), ("two", "2026-01-03", "2026-01-03"),
    ]  # fmt: skip
    assert made_by(makers, makers) == makers


@pytest.mark.parametrize("content", ["", "[]", '{"made_by": 5}', '{"made_by": [1, {}, {"recipe": 1}]}', "{", "\0"])
def test_a_damaged_report_has_no_makers(tmp_path: Path, content: str) -> None:
    (tmp_path / "report.json").write_text(content)
    assert makers_in(tmp_path / "report.json") == []
    assert makers_in(tmp_path / "none.json") == []


@pytest.mark.usefixtures("prefect_api")
async def test_the_report_has_the_makers_when_the_work_folder_is_gone(
    make_job: Callable[..., Job], stand_in: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    import shutil

    job = make_job(4)
    job.write_input(job.rows()[:2])
    await annotate(job, stand_in)
    shutil.rmtree(job.work)
    job.write_input(job.rows())
    await annotate(job, stand_in, recipe=AnnotationRecipe(temperature=0.5))
    assert "lists other recipes (d16ba0f1aa52) than this run's" in caplog.text
    makers = json.loads((job.folder / "labeled.report.json").read_text())["made_by"]
    assert [each["settings"]["temperature"] for each in makers] == [0.0, 0.5]
    assert {each["model_root"] for each in makers} == {"/models/stand-in-qwen2.5-vl"}
    await annotate(job, stand_in, recipe=AnnotationRecipe(temperature=0.5))
    assert json.loads((job.folder / "labeled.report.json").read_text())["made_by"] == makers, "it answered nothing"
    assert makers[1]["recipe"] in (job.folder / "labeled.report.html").read_text()
