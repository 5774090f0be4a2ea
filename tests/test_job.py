"""A run's parameters are declared once: flows, command line and job files agree."""

import inspect
import typing
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from blocks import AnnotationRecipe, VLLMServer
from flows.annotate import annotate_images
from flows.annotate_sharded import annotate_sharded
from flows.retry import REMEMBERED, retry_failures
from flows.support.flow import REQUIRED
from vllm_annotate.job import Job, remembered_job
from vllm_annotate.recipe.settings import Recipe
from vllm_annotate.serving.launch import Launch
from vllm_annotate.serving.settings import Server

OF_ONE = {"annotate-sharded": ("input",), "retry-failures": ("output",)}  # not a list; not a folder that is new
FLOWS: list[Any] = [annotate_images, annotate_sharded, retry_failures]
BLOCKS = {"server": VLLMServer, "recipe": AnnotationRecipe}


def schema_of(annotation: Any) -> dict[str, Any]:
    return TypeAdapter(annotation).json_schema()


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_a_flow_has_the_parameters_of_a_job_with_its_types_defaults_and_texts(flow: Any) -> None:
    hints = typing.get_type_hints(flow.fn, include_extras=True)
    texts = flow.parameters.properties
    shared = [name for name in inspect.signature(flow.fn).parameters if name in Job.model_fields]
    for name in shared:
        field, parameter = Job.model_fields[name], inspect.signature(flow.fn).parameters[name]
        if flow is retry_failures and name in REMEMBERED:
            assert parameter.default is None
            assert "that of the run that failed" in " ".join(texts[name]["description"].split())
            continue
        if name in OF_ONE.get(flow.name, ()):
            assert ".jsonl" in texts[name]["description"]
            continue
        assert " ".join(texts[name]["description"].split()) == field.description, name
        required = (inspect.Parameter.empty, REQUIRED)
        assert parameter.default in required if field.is_required() else parameter.default == field.default
        if name in BLOCKS:
            assert hints[name] == BLOCKS[name] | None
        else:
            of_job = schema_of(Job)["properties"][name]
            of_flow = schema_of(hints[name]) | {"description": field.description}
            noise = ("title", "default")
            assert {key: value for key, value in of_flow.items() if key not in noise} == {
                key: value for key, value in of_job.items() if key not in noise
            }


def test_the_flow_has_all_parameters_in_the_same_order() -> None:
    assert list(inspect.signature(annotate_images.fn).parameters) == list(Job.model_fields)


def test_blocks_have_the_fields_of_the_librarys_settings() -> None:
    assert set(VLLMServer.model_fields) == set(Server.model_fields)
    assert set(AnnotationRecipe.model_fields) == set(Recipe.model_fields)


def test_a_job_is_saved_without_its_secrets_and_with_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    start = Launch(model_path="m", environment={"HF_TOKEN": "hf_secret", "VLLM_USE_V1": "1", "ODD": "a secret too"})
    server = VLLMServer(endpoints=["http://gpu:8000/v1"], api_key="sk-secret", start=start)
    job = Job(input="a.jsonl", image_root="s3://bucket/images", output="labeled.jsonl", server=server, chunk_size=7)
    (tmp_path / "labeled.work").mkdir()
    job.remember(tmp_path / "labeled.work" / "job.json")
    text = (tmp_path / "labeled.work" / "job.json").read_text()
    assert "secret" not in text
    assert remembered_job(tmp_path / "labeled.jsonl") == {
        "input": str(tmp_path / "a.jsonl"), "image_root": "s3://bucket/images",
        "output": str(tmp_path / "labeled.jsonl"), "chunk_size": 7,
        "server": {
            "endpoints": ["http://gpu:8000/v1"],
            "start": {"model_path": "m", "environment": {"VLLM_USE_V1": "1"}, "environment_from": ["HF_TOKEN", "ODD"]},
        },
    }  # fmt: skip


@pytest.mark.parametrize("content", ["", "{", "[]", '{"input": "a", "of_a_later_version": 1}'])
def test_a_damaged_job_file_is_ignored(tmp_path: Path, content: str) -> None:
    (tmp_path / "labeled.work").mkdir()
    (tmp_path / "labeled.work" / "job.json").write_text(content)
    assert set(remembered_job(tmp_path / "labeled.jsonl")) <= {"input"}
