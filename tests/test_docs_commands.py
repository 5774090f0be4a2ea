"""Every command of the pages does what its page says; here against the stand-in, in tests/deployed/test_docs.py on
a Prefect server.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
import yaml

from stand_in.ports import free_port
from stand_in.process import StandIn
from tests.conftest import ROOT, Job, lines_of
from tests.serving.conftest import make_model, qwen_config, vllm  # noqa: F401 - fixtures
from tests.support.pages import ENGLISH, ON_A_SERVER, Command, blocks_of, commands_of, inline_commands
from tests.support.s3 import Bucket
from tests.support.tars import write_webdataset
from vllm_annotate.serving.command import NEWEST, serve_command
from vllm_annotate.serving.launch import Launch

MakeJob = Callable[..., Job]
BY_PAGE = {page.name: page for page in ENGLISH}
NOT_RUN = {  # how a command begins → why no test runs it
    "make test ": "it is what runs this",
    "make demo ": "tests/test_demo.py runs the same",
    "python3.11 -m venv ": "the environment that this runs in was made the same way",
    ".venv/bin/pip install ": "as above; downloads",
    "source .venv/bin/activate": "as above",
    "pip install '.[s3]'": "as above",
    "pip install modelscope": "downloads, for the next one",
    "modelscope download ": "downloads 20 GB",
    "vllm serve ": "needs a GPU and a model; a test below compares the flags",
    "python -m vllm.entrypoints.openai.api_server ": "fails, as its page says, in a real vLLM",
}
RUN_HERE = (
    "README.md", "audit.md", "contributing.md", "evaluation.md", "export.md", "inputs.md", "object-storage.md",
    "observability.md", "output.md", "pilot.md", "proof.md", "quickstart.md", "resume.md", "review.md", "scale-out.md",
    "servers.md", "three-24gb-gpus.md", "troubleshooting.md",
)  # fmt: skip


def deployed() -> set[str]:
    """What tests/deployed/test_docs.py runs: the blocks without a language of the pages that it reads."""
    pages = [BY_PAGE[name] for name in ON_A_SERVER]
    return {
        line for page in pages for block in blocks_of(page) if not block.language for line in block.text.split("\n")
    }


def commands(name: str) -> list[Command]:
    """The commands of a page that are to be run here: those of its blocks, then those within its sentences."""
    page = BY_PAGE[name]
    elsewhere = deployed()
    complete = [command for command in inline_commands(page) if command.text.startswith("vllm-annotate ")]
    complete = [command for command in complete if "--output labeled.jsonl" in command.text or "3x24" in command.text]
    found = [command for command in commands_of(page) if command.text.split("\n")[0] not in elsewhere]
    return [
        command for command in [*found, *complete] if not any(f"{command.text} ".startswith(begin) for begin in NOT_RUN)
    ]


class Place:
    """A folder with captions.jsonl and images/, and a stand-in wherever the pages expect vLLM."""

    def __init__(self, job: Job, server: StandIn, models: Path, commands: Path) -> None:
        self.folder, self.job, self.server = job.folder, job, server
        job.input.rename(job.folder / "captions.jsonl")
        programs = f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = os.environ | {"PATH": programs, "HOME": str(job.folder), "SHELL": "/bin/bash"}
        self.own = {
            "http://localhost:8000": server.url, "http://gpu-1:8000": server.url, "/models/": f"{models}/",
            "/opt/vllm/bin/vllm": str(commands / "vllm"), "/home/you": str(job.folder),
            "--model-path …": f"--model-path {models}/Qwen2.5-VL-32B-Instruct-AWQ",
        }  # fmt: skip

    def here(self, text: str) -> str:
        """What a page says, with this place's own files and servers."""
        for written, own in self.own.items():
            text = text.replace(written, own)
        return text

    def run(self, command: Command, *, code: int = 0, more: str = "") -> str:
        """Types a command; returns what it prints."""
        done = subprocess.run(
            ["bash", "-c", self.here(command.text) + more],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == code, command.text + done.stdout + done.stderr
        return done.stdout + done.stderr

    def annotate(self, code: int = 0) -> None:
        """Runs the README's command, as the pages about what follows take it for done."""
        command = next(each for each in commands("README.md") if each.text.startswith("vllm-annotate annotate"))
        self.run(command, code=code, more=" --without-prefect")

    def serve_with(self, fields: str) -> None:
        """Writes server.yaml as a page has it; the port is free here, and this machine has no GPUs to choose from."""
        known = yaml.safe_load(self.here(fields))
        known["start"] |= {"port": free_port(), "linger_seconds": 0}
        known["start"].pop("gpus", None)
        (self.folder / "server.yaml").write_text(yaml.safe_dump(known))

    def clear(self) -> None:
        """Removes what runs have written."""
        for path in self.folder.glob("*labeled*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def answered(self) -> list[str]:
        return [row["image_path"] for row in lines_of(self.job.output)]


@pytest.fixture
def place(
    make_job: MakeJob,
    stand_in: StandIn,
    make_model: Callable[..., Path],  # noqa: F811
    vllm: Path,  # noqa: F811
) -> Place:
    make_model(qwen_config("7B"), "Qwen2.5-VL-7B-Instruct")
    models = make_model(qwen_config("32B-AWQ"), "Qwen2.5-VL-32B-Instruct-AWQ").parent
    return Place(make_job(24, distinct=4), stand_in, models, vllm.parent)


def test_every_command_is_run_by_a_test_or_says_why_not() -> None:
    assert {page.name for page in ENGLISH if commands(page.name)} == set(RUN_HERE)
    everything = [f"{command.text} " for page in ENGLISH for command in commands_of(page)]
    for begin in NOT_RUN:
        assert any(text.startswith(begin) for text in everything), f"no page has {begin}"
    for page in ENGLISH:
        bare = [block for block in blocks_of(page) if not block.language and "prefect " in block.text]
        assert not bare or page.name in ON_A_SERVER


@pytest.mark.usefixtures("prefect_api")
def test_readme(place: Place) -> None:
    (command,) = commands("README.md")
    place.run(command)
    assert place.answered() == place.job.names
    there = {path.name for path in place.folder.glob("labeled.*")}
    listed = next(block.text for block in blocks_of(BY_PAGE["README.md"]) if block.text.startswith("labeled.jsonl "))
    assert there == {line.split()[0].rstrip("/") for line in listed.splitlines()} - {"labeled.failures.jsonl"}


@pytest.mark.usefixtures("prefect_api")
def test_quickstart(place: Place) -> None:
    for command in commands("quickstart.md"):
        asks = " annotate " in command.text
        printed = place.run(command, more=" --without-prefect" if asks else "")
        if "try-labeled" in command.text:
            shown = next(block for block in blocks_of(BY_PAGE["quickstart.md"]) if "Answers:" in block.text)
            assert place.here(shown.text).replace("200", "24").splitlines() == printed.splitlines()[-3:]
        if "job.yaml        # shows" in command.text:
            assert "max_concurrency: 64" in printed
    assert place.answered() == place.job.names
    place.clear()
    script = next(block.text for block in blocks_of(BY_PAGE["quickstart.md"]) if block.language == "python")
    written = Command("quickstart.md", f"python - <<'END'\n{script}END")
    assert "24 images: 24 answered, 0 failed" in place.run(written)
    assert place.answered() == place.job.names


def test_inputs(place: Place) -> None:
    paths = write_webdataset(place.folder / "00000.tar", place.job)
    images = [place.job.images.joinpath(name).read_bytes() for name in place.job.names]
    data = pl.DataFrame({"image": images, "caption": place.job.names})
    data.write_parquet(place.folder / "train-00000-of-00041.parquet")
    place.folder.joinpath("laion").mkdir()
    for name in ("00000.tar", "00001.tar"):
        shutil.copy(place.folder / "00000.tar", place.folder / "laion" / name)
    tar, parquet, several, unpack = commands("inputs.md")
    for command in (tar, parquet, several):
        place.run(command, more=" --without-prefect")
    assert [row["image_path"] for row in lines_of(place.folder / "00000.jsonl")] == paths
    assert len(lines_of(place.folder / "train-00000.jsonl")) == 24
    found = [*place.folder.glob("labeled.*"), *place.folder.glob("labeled/*")]
    listed = next(block.text for block in blocks_of(BY_PAGE["inputs.md"]) if block.text.startswith("laion/"))
    written = {Path(word).name for word in listed.split() if word.startswith("labeled")}
    assert {path.name for path in found} == written - {"labeled.failures.jsonl"}
    place.run(unpack)
    assert all((place.folder / "unpacked" / path).is_file() for path in paths)


def test_output(place: Place) -> None:
    place.annotate()
    for command in commands("output.md"):
        place.run(command)
    assert len(lines_of(place.folder / "reparsed.jsonl")) == 24


def test_evaluation(place: Place) -> None:
    place.annotate()
    place.job.output.rename(place.folder / "truth.jsonl")
    shutil.copy(place.folder / "truth.jsonl", place.job.output)
    shutil.copy(place.folder / "truth.jsonl", place.folder / "other.jsonl")
    evaluate, compare = commands("evaluation.md")
    assert "24 images scored." in place.run(evaluate)
    assert "Every box of the truth was found" in (place.folder / "labeled.evaluation.html").read_text()
    assert "A and B are equally good." in place.run(compare)


def test_pilot(place: Place) -> None:
    count, pilot, sweep = commands("pilot.md")
    assert "24 of 24 images are open" in place.run(count)
    assert "24 images: 24 answered" in place.run(pilot, more=" --without-prefect")
    variants = next(block.text for block in blocks_of(BY_PAGE["pilot.md"]) if block.language == "yaml")
    with StandIn.started() as other:
        place.own["http://gpu-2:8000"] = other.url
        (place.folder / "sweep.yaml").write_text(place.here(variants))
        printed = place.run(sweep)
    assert all(name in printed for name in ("as-it-is", "small-images", "other-server", "hours per million good boxes"))


def test_audit(place: Place) -> None:
    place.annotate()
    audit, with_truth = commands("audit.md")
    assert "24 of 24 answered images" in place.run(audit)
    shutil.copy(place.job.output, place.folder / "truth.jsonl")
    assert "calibration" in (place.run(with_truth) and (place.folder / "labeled.audit.json").read_text())


def test_export(place: Place) -> None:
    place.annotate()
    for command in commands("export.md"):
        place.run(command)
    made = {path.name for path in place.folder.iterdir()}
    assert {"boxes.json", "clean.json", "split.train.json", "split.val.json", "split.test.json"} <= made
    assert "24 images with" in (place.folder / "hub" / "README.md").read_text()


def test_review(place: Place) -> None:
    place.annotate()
    to_review, back = commands("review.md")
    assert "24 images to review" in place.run(to_review)
    tasks = json.loads((place.folder / "tasks.json").read_text())
    accepted = [{"data": task["data"], "annotations": [{"result": task["predictions"][0]["result"]}]} for task in tasks]
    (place.folder / "project-1.json").write_text(json.dumps(accepted))
    assert "24 images reviewed" in place.run(back)


def test_observability(place: Place) -> None:
    place.annotate()
    (place.folder / "labeled.report.html").unlink()
    for command in commands("observability.md"):
        place.run(command)
    assert (place.folder / "labeled.report.html").is_file()
    script = next(block.text for block in blocks_of(BY_PAGE["observability.md"]) if block.language == "python")
    assert "memory_used_mib" in place.run(Command("observability.md", f"python - <<'END'\n{script}END"))


def test_resume(place: Place) -> None:
    image = place.job.images / place.job.names[0]
    content = image.read_bytes()
    image.unlink()
    place.annotate(code=1)
    image.write_bytes(content)
    everything, some_kinds = commands("resume.md")
    assert "nothing to retry" in place.run(some_kinds, more=" --without-prefect")
    place.run(everything, more=" --without-prefect")
    assert sorted(place.answered()) == place.job.names
    assert not place.job.failures.exists()


def test_scale_out(place: Place) -> None:
    shard, merge, of_files, of_an_array = commands("scale-out.md")
    place.folder.joinpath("laion").mkdir()
    for number in range(16):
        write_webdataset(place.folder / f"laion/{number:05d}.tar", place.job)
    place.run(of_files, more=" --without-prefect")
    assert [path.name for path in place.folder.glob("laion-labeled/*")] == ["00002.jsonl"]
    place.run(shard, more=" --without-prefect")
    place.run(merge, code=1)
    done = place.answered()
    assert 0 < len(done) < 24
    assert {row["failure"]["kind"] for row in lines_of(place.job.failures)} == {"unasked"}
    place.clear()
    place.serve_with(server_files("servers.md")[0])
    place.environment["SLURM_ARRAY_TASK_ID"] = "3"
    place.run(of_an_array)
    place.run(merge, code=1)
    assert place.answered() == done


def server_files(name: str) -> list[str]:
    """Each server.yaml of a page."""
    return [block.text for block in blocks_of(BY_PAGE[name]) if block.language == "yaml" and "start:" in block.text]


def test_servers(place: Place) -> None:
    fields, with_a_token = server_files("servers.md")
    place.serve_with(with_a_token)
    annotate = next(command for command in commands("servers.md") if "annotate --server" in command.text)
    place.environment["HF_TOKEN"] = ""
    assert "environment_from names HF_TOKEN" in place.run(annotate, code=2, more=" --without-prefect")
    place.environment |= {"HF_TOKEN": "hf_of_this_place"}
    place.run(annotate, more=" --without-prefect")
    assert place.answered() == place.job.names
    place.clear()
    place.serve_with(fields)
    with StandIn.started() as other:
        place.own["http://gpu-2:8000"] = other.url
        for command in commands("servers.md"):
            refused = " check-server " in command.text
            printed = place.run(command, code=2 if refused else 0, more="" if refused else " --without-prefect")
            if refused:
                assert command.printed.strip() in printed.splitlines()
            else:
                assert place.answered() == place.job.names
            place.clear()


@pytest.mark.parametrize("number", [0, 1, 2], ids=["TP=2", "PP=3", "three replicas"])
@pytest.mark.parametrize("gpus", ["3x23.6", "3x24"])
def test_each_split_for_three_24_gb_gpus_would_start(place: Place, number: int, gpus: str) -> None:
    (place.folder / "server.yaml").write_text(place.here(server_files("three-24gb-gpus.md")[number]))
    check = commands("three-24gb-gpus.md")[0]
    assert " check-server " in check.text
    place.run(Command(check.page, check.text.replace("3x23.6", gpus)))


def test_proof(place: Place) -> None:
    (place.folder / "recipe.yaml").write_text("family: qwen2.5-vl\n")
    plain, as_json = commands("proof.md")
    assert "its boxes are proven" in place.run(plain)
    assert json.loads(place.run(as_json))["model"] == "stand-in-qwen2.5-vl"


def test_three_24_gb_gpus(place: Place) -> None:
    _, annotate = commands("three-24gb-gpus.md")
    recipe = next(block.text for block in blocks_of(BY_PAGE[annotate.page]) if block.text.startswith("# recipe.yaml"))
    (place.folder / "recipe.yaml").write_text(recipe)
    place.serve_with(server_files("three-24gb-gpus.md")[1])
    place.run(annotate, more=" --without-prefect")
    assert place.answered() == place.job.names


def test_object_storage(place: Place, bucket: Bucket) -> None:
    bucket.fs.put_file(str(place.folder / "captions.jsonl"), f"{bucket.url}/captions.jsonl")
    for name in place.job.names:
        bucket.fs.put_file(str(place.job.images / name), f"{bucket.url}/images/{name}")
    place.own["s3://corpus"] = bucket.url
    place.environment |= os.environ | {"PATH": place.environment["PATH"]}
    one, several, export = commands("object-storage.md")
    place.run(one, more=" --without-prefect")
    assert bucket.lines("labeled.jsonl").count(b"\n") == 24
    for name in ("00000.tar", "00001.tar"):
        write_webdataset(place.folder / name, place.job)
        bucket.fs.put_file(str(place.folder / name), f"{bucket.url}/laion/{name}")
    place.run(several, more=" --without-prefect")
    assert bucket.lines("laion-labeled/00001.jsonl").count(b"\n") == 24
    place.run(export)
    assert (place.folder / "laion.parquet").stat().st_size


def test_troubleshooting(place: Place) -> None:
    (command,) = commands("troubleshooting.md")
    assert "use TP=2 (with 1 idle card), or PP=3" in place.run(command, code=2)


def test_contributing(place: Place) -> None:
    (command,) = commands("contributing.md")
    place.own[".venv/bin/python -m pytest"] = (
        f"cd {ROOT} && PYTEST_ADDOPTS= {sys.executable} -m pytest --collect-only --quiet"
    )
    assert "tests/inputs/test_plan.py::" in place.run(command)


def test_flags_for_a_server_of_ones_own_are_those_that_a_run_starts_one_with() -> None:
    launch = Launch(model_path="MODEL", tensor_parallel_size=2, gpu_memory_utilization=0.95)
    arguments, _ = serve_command(launch, NEWEST, "MODEL", 8000, 8192)
    own = dict(pairwise(arguments))
    for command in [command for page in ENGLISH for command in commands_of(page) if command.words[0] == "vllm"]:
        for flag, value in pairwise(command.words):
            if flag.startswith("--") and flag != "--served-model-name":
                assert re.sub(r"\s", "", own[flag]) == re.sub(r"\s", "", value), command
