"""The commands for outputs, on one that is a folder."""

import json
from pathlib import Path

import polars as pl
import pytest

from stand_in.process import StandIn
from tests.conftest import drawn_job, lines_of
from tests.support.corpus import Corpus, command


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, lasting_stand_in: StandIn) -> Corpus:
    """Twelve images in three files, annotated."""
    made = Corpus(drawn_job(12, tmp_path_factory.mktemp("folder")), 3)
    done = made.run(lasting_stand_in)
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture(scope="module")
def truth(corpus: Corpus) -> Path:
    """The answers themselves, but for the first image, in one file."""
    rows = [row for file in sorted(corpus.output.rglob("*.jsonl")) for row in lines_of(file)]
    rows[0]["objects"] = []
    path = corpus.job.folder / "truth.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_evaluate_scores_all_files_and_writes_beside_the_folder(corpus: Corpus, truth: Path) -> None:
    done = command("evaluate", "--output", corpus.output, "--truth", truth, "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert (figures["images"]["scored"], figures["boxes"]) == (12, {"truth_boxes": 11, "answer_boxes": 12})
    page = corpus.job.folder / "labeled.evaluation.html"
    assert "data:image/jpeg;base64," in page.read_text(), "images of the run's image root"


@pytest.mark.parametrize("form", ["coco", "odvg", "ms-swift", "label-studio", "parquet"])
def test_export_writes_the_images_of_all_files(corpus: Corpus, form: str) -> None:
    to = corpus.job.folder / f"export-{form}.{'parquet' if form == 'parquet' else 'json'}"
    done = command("export", "--output", corpus.output, "--format", form, "--to", to)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("12 images, ")
    if form == "parquet":
        assert sorted(pl.read_parquet(to)["image_path"]) == corpus.job.names


def test_reparse_makes_a_folder_that_compares_as_equal(corpus: Corpus) -> None:
    again = corpus.job.folder / "reparsed"
    done = command("reparse", "--input", corpus.output, "--output", again)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("12 answers parsed as qwen2.5-vl, 0 without an annotation")
    for path in corpus.output.rglob("*.jsonl"):
        assert lines_of(again / path.relative_to(corpus.output)) == lines_of(path)
    refused = command("reparse", "--input", corpus.output, "--output", again)
    assert refused.returncode == 2
    assert f"output '{again}' " in refused.stderr
    compared = command("compare", "--output", corpus.output, "--with", again, "--json")
    assert compared.returncode == 0, compared.stderr
    assert json.loads(compared.stdout)["images"]["compared"] == 12


def test_reviews_of_rows_of_any_file_go_beside_the_folder(corpus: Corpus) -> None:
    tasks = corpus.job.folder / "tasks.json"
    done = command("review", "--output", corpus.output, "--most", "5", "--to", tasks)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(tasks.read_text())) == 5


def test_a_folder_without_outputs_is_refused(tmp_path: Path, truth: Path) -> None:
    tmp_path.joinpath("photo.jpg").write_bytes(b"")
    evaluated = command("evaluate", "--output", tmp_path, "--truth", truth)
    assert evaluated.returncode == 2
    assert "is a folder without .jsonl, .jsonl.zst or .parquet: name a run's output" in evaluated.stderr
    exported = command("export", "--output", tmp_path, "--format", "coco", "--to", tmp_path / "boxes.json")
    assert exported.returncode == 2
    assert "has no .jsonl file: name the output of a run" in exported.stderr


def test_audit_asks_a_sample_of_all_files_again(corpus: Corpus, truth: Path, lasting_stand_in: StandIn) -> None:
    asked = ("--sample", "8", "--asks", "1", "--truth", truth, "--api-base", f"{lasting_stand_in.url}/v1")
    done = command("audit", "--output", corpus.output, *asked, "--json")
    assert done.returncode == 0, done.stderr
    images = json.loads(done.stdout)["images"]
    assert (images["answered"], images["sampled"], images["audited"]) == (12, 8, 8)
    audited = lines_of(corpus.job.folder / "labeled.audit.jsonl")
    assert len(audited) == 8
    page = corpus.job.folder / "labeled.audit.html"
    assert page.exists()
