"""The built wheel, as people install it."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from stand_in.process import StandIn
from tests.conftest import ROOT, lines_of


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = ["wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands of an environment that has the wheel; dependencies are those of this one."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, symlinks=True)
    packages = next(Path(sys.prefix).glob("lib/python*/site-packages"))
    own = next(folder.glob("lib/python*/site-packages"))
    (own / "dependencies.pth").write_text(f"{packages}\n")
    pip = [sys.executable, "-m", "pip", f"--python={folder / 'bin' / 'python'}"]
    install = ["install", "--quiet", "--no-deps", "--ignore-installed", "--no-index", str(wheel)]
    subprocess.run([*pip, *install], check=True)
    return folder / "bin"


def run(installed: Path, *command: object, cwd: Path) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [installed / str(command[0]), *map(str, command[1:])],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_it_holds_what_a_worker_needs(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "flows/annotate.py", "blocks/vllm_server.py", "deployments/prefect.yaml", "deployments/setup.py",
        "deployments/systemd/prefect-worker.service", "vllm_annotate/report/templates/base.html.j2",
        "vllm_annotate/py.typed",
    } <= names  # fmt: skip
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "demo"))]


def test_prefect_finds_the_blocks_by_their_entry_point(installed: Path, tmp_path: Path) -> None:
    program = (
        "from prefect.plugins import load_prefect_collections as load; import blocks; "
        "print(load()['vllm_annotate'].__file__, blocks.VLLMServer.get_block_type_slug())"
    )
    found = run(installed, "python", "-c", program, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == [str(installed.parent / found.stdout.split()[0]), "vllm-server"]


def test_it_annotates(installed: Path, tmp_path: Path, stand_in: StandIn) -> None:
    from demo.scenes import write_small_folder

    rows, _ = write_small_folder(tmp_path, 3, shapes=1)
    job = ["--input", rows, "--image-root", tmp_path / "images", "--output", tmp_path / "labeled.jsonl"]
    command = ["vllm-annotate", "annotate", *job, "--api-base", f"{stand_in.url}/v1", "--without-prefect"]
    done = run(installed, *command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(lines_of(tmp_path / "labeled.jsonl")) == 3


@pytest.mark.parametrize("package", ["flows", "blocks"])
def test_a_projects_own_package_of_the_same_name_is_refused_with_its_path(
    installed: Path, tmp_path: Path, package: str
) -> None:
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("")
    job = ["--input", "i.jsonl", "--image-root", ".", "--output", "labeled.jsonl"]
    program = (
        "from vllm_annotate.cli.start import start; start()"  # with this folder on the path, as `python -m` has it
    )
    refused = run(installed, "python", "-c", program, "annotate", *job, cwd=tmp_path)
    assert refused.returncode == 2, refused.stderr
    assert f"Python finds {tmp_path / package} instead of vllm-annotate's package {package!r}" in refused.stderr
    assert "Traceback" not in refused.stderr
    other = run(installed, "vllm-annotate", "annotate", *job, cwd=tmp_path)
    assert "i.jsonl' does not exist" in other.stderr, "the command itself does not look in this folder"
