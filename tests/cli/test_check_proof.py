"""`vllm-annotate check-server --proof`: what a user sees before a run."""

import json
from pathlib import Path

import pytest

from stand_in.process import StandIn
from vllm_annotate.cli.main import main
from vllm_annotate.proof.finding import Finding


def check(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command."""
    code = main(["check-server", "--proof", *arguments])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_a_proven_server_ends_with_0_and_the_figures(capsys: pytest.CaptureFixture[str], stand_in: StandIn) -> None:
    code, out, err = check(capsys, "--api-base", f"{stand_in.url}/v1")
    assert (code, err) == (0, "")
    assert f"{stand_in.url}/v1, vLLM 0.32.0, family qwen2.5-vl" in out
    assert "8 token counts match a grid of 28 pixels; images within the budget are sent as they are" in out
    assert "its boxes are proven: mean IoU 0.9" in out
    assert "IoU by space: pixels 0.9" in out


def test_json_has_all_that_a_bug_report_needs_and_no_key(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "sk-Zq81xPvRw7")
    with StandIn.started("--api-key", "sk-Zq81xPvRw7") as server:
        code, out, err = check(capsys, "--api-base", f"{server.url}/v1", "--json")
    shown = json.loads(out)
    assert code == 0
    assert {"vllm_annotate", "model", "recipe", "endpoints"} == set(shown)
    entry = shown["endpoints"][f"{server.url}/v1"]
    assert Finding.model_validate(entry).is_proven
    assert entry["server"]["version"] == "0.32.0"
    assert "Zq81" not in out + err


def test_a_server_in_doubt_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    with StandIn.started("--no-usage") as server:
        code, out, _ = check(capsys, "--api-base", f"{server.url}/v1")
    assert code == 1
    assert "what it sees is unknown, as its answers have no usage; images are resized here" in out


def test_a_server_whose_boxes_would_be_wrong_ends_with_2_and_the_remedy(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, stand_in: StandIn
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("family: kimi-vl\n")
    code, out, _ = check(capsys, "--api-base", f"{stand_in.url}/v1", "--recipe", str(recipe))
    assert code == 2
    assert "REFUSED: its boxes are in another space than kimi-vl's" in out
    assert "set the recipe's family to qwen2.5-vl" in out


def test_of_several_servers_each_is_shown(capsys: pytest.CaptureFixture[str], stand_in: StandIn) -> None:
    with StandIn.started("--max-visual-tokens", "300") as small:
        code, out, _ = check(capsys, "--api-base", f"{stand_in.url}/v1", f"{small.url}/v1")
    assert code == 2
    assert out.count("its boxes are proven") == 2
    assert out.count("REFUSED: it reduces images") == 1


def test_a_server_file_names_the_endpoints(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, stand_in: StandIn
) -> None:
    server = tmp_path / "server.yaml"
    server.write_text(f"endpoints: [{stand_in.url}/v1]\nmodel: stand-in-qwen2.5-vl\n")
    assert check(capsys, "--server", str(server))[0] == 0


def test_a_server_that_is_down_is_refused_with_the_remedy(capsys: pytest.CaptureFixture[str], nobody: str) -> None:
    code, _, err = check(capsys, "--api-base", f"{nobody}/v1")
    assert code == 2
    assert "start one" in err


def test_of_two_servers_one_that_is_down_is_named(
    capsys: pytest.CaptureFixture[str], stand_in: StandIn, nobody: str
) -> None:
    code, out, _ = check(capsys, "--api-base", f"{stand_in.url}/v1", f"{nobody}/v1")
    assert code == 2
    assert f"{nobody}/v1 does not answer" in out
    assert "its boxes are proven" in out


def test_options_that_would_start_a_server_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = check(capsys, "--model-path", "/models/qwen")
    assert code == 2
    assert "--proof asks a server that runs, and --model-path would start one" in err
    assert main(["check-server", "--api-base", "http://localhost:8000/v1"]) == 2
    assert "add --proof to prove it" in capsys.readouterr().err


def test_a_name_that_tells_nothing_is_identified(capsys: pytest.CaptureFixture[str]) -> None:
    with StandIn.started("--family", "internvl", "--model", "ours") as server:
        code, out, err = check(capsys, "--api-base", f"{server.url}/v1")
    assert code == 0
    assert "its boxes for drawn scenes fit thousandths" in err
    assert "family thousandths" in out
