"""The files of an input, and their names."""

import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from vllm_annotate.errors import UsageError
from vllm_annotate.inputs.listing import SAMPLED_FILES, InputFile, Inputs, list_inputs, names_one_file


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder with tars in two folders, and what is no input."""
    folder = tmp_path / "corpus"
    for name in ("a/0.tar", "a/1.tar", "b/0.tar", ".hidden/2.tar", "a/.3.tar", "a/readme.md"):
        folder.joinpath(name).parent.mkdir(parents=True, exist_ok=True)
        folder.joinpath(name).write_text(name)
    return folder


def names(given: Path | str | list[Path | str]) -> list[str]:
    return [file.name for file in list_inputs(given).files]


def test_a_file_a_glob_a_folder_and_a_list_have_names_from_their_common_folder(corpus: Path) -> None:
    assert names(corpus) == ["a/0.tar", "a/1.tar", "b/0.tar"]
    assert names(corpus / "*" / "0.tar") == ["a/0.tar", "b/0.tar"]
    assert names(corpus / "**" / "*.tar") == ["a/0.tar", "a/1.tar", "b/0.tar"]
    assert names(corpus / "a") == names(corpus / "a" / "*.tar") == ["0.tar", "1.tar"]
    assert names(corpus / "a" / "0.tar") == ["0.tar"]
    assert names([corpus / "b", corpus / "a" / "0.tar"]) == ["a/0.tar", "b/0.tar"]
    assert names([corpus / "a", corpus / "a" / "0.tar"]) == ["0.tar", "1.tar"], "each once"


def test_a_file_knows_its_version_its_size_and_the_name_of_its_answers(corpus: Path) -> None:
    (file,) = list_inputs(corpus / "b").files
    status = corpus.joinpath("b/0.tar").stat()
    assert (file.version, file.size) == ([status.st_size, status.st_mtime_ns], status.st_size)
    assert file.output_name == "0.jsonl"
    corpus.joinpath("b/0.tar").rename(corpus / "b/captions.v2.jsonl.zst")
    assert [file.output_name for file in list_inputs(corpus / "b").files] == ["captions.v2.jsonl"]


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x[1].jsonl"
    path.write_text("{}")
    assert names_one_file(path)
    assert names(path) == ["x[1].jsonl"]
    assert not names_one_file(tmp_path / "x*.jsonl")
    assert not names_one_file(tmp_path)
    assert names_one_file([path])
    assert not names_one_file([path, path])
    assert names_one_file("s3://bucket/a.parquet")
    assert not names_one_file("s3://bucket/a/")
    assert not names_one_file("s3://bucket/*.parquet")


def test_files_of_several_forms_are_refused_with_an_example(corpus: Path) -> None:
    corpus.joinpath("b/1.parquet").write_text("")
    with pytest.raises(UsageError, match=r"forms, 'a/0\.tar' \(tar\) and 'b/1\.parquet' \(parquet\): give those"):
        list_inputs(corpus)


def test_files_whose_answers_would_be_in_one_file_are_refused(tmp_path: Path) -> None:
    for name in ("x.jsonl", "x.jsonl.gz"):
        tmp_path.joinpath(name).write_text("")
    with pytest.raises(UsageError, match=r"to 'x\.jsonl' and 'x\.jsonl\.gz' would both be in 'x\.jsonl': rename"):
        list_inputs(tmp_path)


@pytest.mark.parametrize("given", ["nowhere.jsonl", "nowhere/*.tar", "empty"])
def test_no_files_are_refused(tmp_path: Path, given: str) -> None:
    tmp_path.joinpath("empty").mkdir()
    with pytest.raises(UsageError, match=r"does not exist: give a \.jsonl|has no files: give a \.jsonl"):
        list_inputs(tmp_path / given)


def test_the_outputs_own_files_are_never_inputs(corpus: Path) -> None:
    out = corpus / "a" / "labeled"
    out.mkdir()
    out.joinpath("0.jsonl").write_text("")
    assert [file.name for file in list_inputs(corpus, [out]).files] == ["a/0.tar", "a/1.tar", "b/0.tar"]


def test_links_into_the_output_and_in_circles_are_not_followed(corpus: Path, tmp_path: Path) -> None:
    out = corpus / "a" / "labeled"
    out.mkdir()
    out.joinpath("0.tar").write_text("")
    corpus.joinpath("a/round").symlink_to(corpus, target_is_directory=True)
    tmp_path.joinpath("link").symlink_to(corpus, target_is_directory=True)
    assert len(list_inputs(tmp_path / "link", [out]).files) == 3


def test_a_name_that_is_not_utf_8_is_refused(corpus: Path) -> None:
    Path(os.fsdecode(os.fsencode(corpus) + b"/a/\xff.tar")).touch()
    with pytest.raises(UsageError, match="is not UTF-8: rename"):
        list_inputs(corpus)


def test_few_files_have_shares_of_a_sample_by_their_sizes() -> None:
    sizes = {"a.tar": 5_000, "b.tar": 2_000, "c.tar": 1_000, "d.tar": 0}
    inputs = Inputs("/data/", [InputFile(name, Path(name), None, size) for name, size in sizes.items()])
    assert [file.sample for file in inputs.sampled(80, 0).files] == [50, 20, 10, 0]
    before = [0] * 4
    for sample in range(1, 300):
        shares = [file.sample for file in inputs.sampled(sample, 0).files]
        assert sum(shares) == sample
        assert all(now >= then for now, then in zip(shares, before, strict=True))
        before = shares


def test_a_sample_is_drawn_from_few_files_the_larger_ones_more_often() -> None:
    sizes = {f"{number:03d}.jsonl": 1000 * (1 + number % 2 * 9) for number in range(400)}
    inputs = Inputs("/data/", [InputFile(name, Path(name), None, size) for name, size in sizes.items()])
    drawn = [{file.name for file in inputs.sampled(200, seed).files if file.sample} for seed in range(50)]
    large = sum(sizes[name] == 10_000 for names in drawn for name in names)
    assert all(len(names) == SAMPLED_FILES for names in drawn)
    assert 0.87 < large / (50 * SAMPLED_FILES) < 0.95, "ten of eleven bytes are in large files"
    assert drawn[0] != drawn[1]
    before = dict.fromkeys(sizes, 0)
    for sample in (1, 7, 19, 20, 21, 215, 216, 1000):
        shares = {file.name: file.sample for file in inputs.sampled(sample, 3).files}
        assert sum(shares.values()) == sample
        assert all(shares[name] >= before[name] for name in shares), "a larger sample contains a smaller one"
        before = shares
    few = inputs.sampled(200, 3).bytes_for_drawn_one()
    assert 10 < few < 50
    assert inputs.bytes_for_drawn_one() == 1


def test_what_earlier_runs_wrote_is_no_input_unless_it_is_all_there_is(tmp_path: Path) -> None:
    for name in ("a.jsonl", "labeled.jsonl", "labeled.failures.jsonl", "labeled.work/recipe.json", "b/captions.jsonl"):
        tmp_path.joinpath(name).parent.mkdir(exist_ok=True)
        tmp_path.joinpath(name).write_text("{}")
    for name in ("captions.work/recipe.json", "captions/a.jsonl", "captions.work/finished.jsonl"):
        tmp_path.joinpath("b", name).parent.mkdir(exist_ok=True)
        tmp_path.joinpath("b", name).write_text("{}")
    tmp_path.joinpath("b/captions.work/format").write_text("2\n")
    found = list_inputs(tmp_path)
    assert [file.name for file in found.files] == ["a.jsonl", "b/captions.jsonl"]
    assert found.of_runs == [str(tmp_path / "b" / "captions"), str(tmp_path / "labeled.jsonl")]
    assert names(tmp_path / "*.jsonl") == ["a.jsonl"]
    assert names(sorted(tmp_path.glob("*.jsonl"))) == ["a.jsonl"], "as a shell expands a pattern"
    assert names(tmp_path / "labeled.jsonl") == ["labeled.jsonl"]
    assert names(tmp_path / "labeled.json*") == ["labeled.jsonl"], "all there is"
    assert names(tmp_path / "b" / "captions") == ["a.jsonl"]


def test_the_tables_that_img2dataset_writes_beside_its_tars_are_no_inputs(tmp_path: Path) -> None:
    for number in range(3):
        for ending in (".tar", ".parquet", "_stats.json"):
            tmp_path.joinpath(f"{number:05d}{ending}").write_text("")
    assert names(tmp_path) == ["00000.tar", "00001.tar", "00002.tar"]
    tmp_path.joinpath("more.parquet").write_text("")
    with pytest.raises(
        UsageError, match=rf"'00000.parquet' \(parquet\) and '00000.tar' \(tar\): .* '{tmp_path}/\*\.parquet'"
    ):
        names(tmp_path)


@pytest.mark.parametrize("name", ["2024.reviewed.jsonl", "x.failures.jsonl.gz", "c.audit.jsonl"])
def test_a_name_whose_answers_would_be_taken_for_something_else_is_refused(tmp_path: Path, name: str) -> None:
    tmp_path.joinpath(name).write_text("{}")
    tmp_path.joinpath("a.jsonl").write_text("{}")
    with pytest.raises(UsageError, match="is a name of other files of a run: rename the input file"):
        names(tmp_path)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_files_of_a_web_server_have_sizes_and_other_versions_once_they_change(tmp_path: Path) -> None:
    for name in ("0.tar", "1.tar"):
        tmp_path.joinpath(name).write_bytes(bytes(10))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/*.tar"
        before = list_inputs(url).files
        os.utime(tmp_path / "1.tar", (1e9, 1e9))
        after = list_inputs(url).files
        server.shutdown()
    assert [(file.name, file.size) for file in before] == [("0.tar", 10), ("1.tar", 10)]
    assert [one.version == other.version for one, other in zip(before, after, strict=True)] == [True, False]
