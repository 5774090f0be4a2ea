"""`vllm-annotate`: fast help, one-line errors, options from one declaration."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version

import pytest

from tests.cli.conftest import Done
from tests.conftest import ROOT
from vllm_annotate.cli.main import COMMANDS
from vllm_annotate.job import Job
from vllm_annotate.serving.launch import Launch

Command = Callable[..., Done]
PROGRAM = "from vllm_annotate.cli.start import start; start()"


def options_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z-]+", text))


def test_without_a_command_it_lists_the_commands(command: Command) -> None:
    for arguments in ([], ["--help"]):
        done = command(*arguments)
        assert done.code == 0
        assert all(name in done.out for name in COMMANDS)


def test_it_prints_its_version(command: Command) -> None:
    assert command("--version").out.strip() == version("vllm-annotate")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(command: Command, name: str) -> None:
    done = command(name, "--help")
    assert (done.code, done.err) == (0, "")
    assert "--help" not in options_in(done.out) or done.out.startswith("Usage")
    assert not [option for option in options_in(done.out) if option.startswith(("--empty-", "--no-"))]


@pytest.mark.parametrize("columns", ["0", "1", "2", "20", "9" * 5000, "²"])
def test_help_fits_any_width_of_a_terminal(columns: str) -> None:
    program = f"import resource; resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30)); {PROGRAM}"
    command = [sys.executable, "-c", program, "annotate", "--help"]
    environment = os.environ | {"COLUMNS": columns}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "--image-root" in done.stdout


def test_annotate_has_an_option_for_every_field_of_a_job(command: Command) -> None:
    names = {f"--{name.replace('_', '-')}" for name in Job.model_fields}
    more = {"--api-base", "--model-name", "--job", "--without-prefect", "--log-json", "--dry-run"}
    assert options_in(command("annotate", "--help").out) == names | more
    shown = " ".join(command("annotate", "--help").out.replace("│", " ").split())
    texts = {name: str(field.description) for name, field in Job.model_fields.items()}
    assert all(text in shown for name, text in texts.items() if name not in ("server", "recipe"))


def test_check_server_has_an_option_for_every_field_but_mappings(command: Command) -> None:
    names = {f"--{name.replace('_', '-')}" for name in Launch.model_fields if name != "environment"}
    assert names <= options_in(command("check-server", "--help").out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["anotate"], "error: 'anotate' is not a command: use one of annotate, pilot"),
        (["annotate", "--concurency", "3"], "error: Unknown option: --concurency."),
        (["annotate", "file.jsonl"], "file.jsonl"),
        (["annotate", "--input"], "option --input requires an argument"),
        (["annotate"], "error: --input is required (or input in the file of --job)"),
        (["annotate", "--input", "i", "--image-root", "r", "--output", "o.jsonl", "--chunk-size", "many"],
         "--chunk-size 'many': Input should be a valid integer"),
        (["annotate", "--job", "/nowhere.yaml"], "job '/nowhere.yaml' cannot be read"),
        (["retry"], "error: --output is required"),
        (["annotate", "--input", "", "--image-root", " ", "--output", "o.jsonl"],
         "--input '': it is empty: write a path or a URL; --image-root ' ': it is empty"),
        (["report", "--output", ""], "--output '': it is empty"),
        (["report", "--output", "none.jsonl"],
         "error: no run of none.jsonl is recorded beside it: correct --output, or set --image-root"),
        (["retry", "--output", "none.jsonl"], "error: no run of none.jsonl is recorded beside it"),
        (["merge-shards", "--output", "none.jsonl"], "correct --output, or set --input"),
        (["reparse", "--input", "none.jsonl", "--output", "o.jsonl"], "input 'none.jsonl' is not a file"),
        (["report"], "error: --output is required"),
        (["merge-shards"], "error: --output is required"),
        (["reparse"], "error: --input and --output: required"),
        (["check-server"], "error: no model: set --model-path"),
        (["config", "--chunk-size", "0"], "--chunk-size '0': Input should be greater than or equal to 1"),
    ],
)  # fmt: skip
def test_bad_usage_is_one_line_and_exit_code_2(command: Command, arguments: list[str], message: str) -> None:
    done = command(*arguments)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1, done.err


def test_the_last_of_an_option_that_is_given_again_wins(command: Command) -> None:
    urls = ["--api-base", "http://a/v1", "--api-base", "http://b/v1"]
    done = command("config", "--chunk-size", "5", *urls, "--chunk-size=7", "--input", "i", "--chunk-size", "9")
    assert done.code == 0, done.err
    assert "chunk_size: 9" in done.out
    assert "- http://a/v1\n  - http://b/v1" in done.out


def test_a_secret_value_is_never_shown(command: Command, tmp_path: object) -> None:
    done = command("annotate", "--input", "i", "--image-root", "r", "--output", "o.jsonl",
                   "--api-base", "http://user:hunter2@gpu/v1")  # fmt: skip
    assert done.code == 2
    assert "hunter2" not in done.err
    assert done.err.startswith("error: --api-base: endpoint http://gpu…")


@pytest.mark.parametrize("option", ["--input", "--image-root", "--output"])
@pytest.mark.parametrize("url", ["s3://user:hunter2@bucket/a.jsonl", "https://:hunter2@host", "sftp://u:p:hunter2@h/a"])
def test_a_url_with_a_password_is_refused_without_showing_it(command: Command, option: str, url: str) -> None:
    paths = {"--input": "i.jsonl", "--image-root": "r", "--output": "o.jsonl"} | {option: url}
    done = command("annotate", *(word for pair in paths.items() for word in pair))
    assert done.code == 2
    assert done.err.startswith(f"error: {option}: a URL must not contain a password")
    assert "hunter2" not in done.err


@pytest.mark.parametrize("arguments", [["--help"], ["annotate", "--help"]])
def test_help_imports_nothing_that_takes_long(arguments: list[str]) -> None:
    program = "import sys; from vllm_annotate.cli.main import main; main(sys.argv[1:]); print(*sys.modules)"
    command = [sys.executable, "-c", program, *arguments]
    imported = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert not {"prefect", "polars", "openai", "PIL", "aiohttp"} & set(imported)
