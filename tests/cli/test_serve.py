"""Flags, file and environment of `quire serve`, as --explain shows them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from quire.serve import BadSetting, main, resolve, setting_help, settings_fields
from quire_api.errors import UserError
from quire_runtime.agent.errors import WeightsNotFound
from quire_runtime.config import EngineConfig
from quire_runtime.server.config import ServerConfig


def explained(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, tuple[str, str]]:
    """Setting -> (value, source)."""
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--explain"])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    return {line.split()[0]: (line[33:].split("  ")[0].strip(), line[62:].strip()) for line in lines}


def test_every_setting_is_explained_with_its_source(capsys, monkeypatch):
    monkeypatch.setenv("QUIRE_INTERNAL_KEY", "hidden-word")
    said = explained(capsys, "m", "--port", "9", "--max-model-len", "2k", "--no-enable-prefix-caching")
    assert said.keys() == EngineConfig.model_fields.keys() | ServerConfig.model_fields.keys()
    assert said["port"] == ("9", "flag --port")
    assert said["max_model_len"] == ("2000", "flag --max-model-len")
    assert said["enable_prefix_caching"] == ("false", "flag --enable-prefix-caching")
    assert said["internal_key"] == ("***", "environment QUIRE_INTERNAL_KEY")
    assert said["host"] == ('"0.0.0.0"', "default")


def test_one_flag_takes_several_values(capsys):
    said = explained(capsys, "--served-model-name", "a", "b", "--device", "cpu", "m")
    assert said["served_model_name"][0] == '["a", "b"]'
    assert said["model"][0] == '"m"'


def test_flags_go_before_the_environment_and_that_before_the_file(tmp_path):
    file = tmp_path / "serve.yaml"
    file.write_text("port: 1\nmax-num-seqs: 8\ninternal_key: file\n")
    settings = resolve("m", {"port": 2}, file, {"QUIRE_INTERNAL_KEY": "environment", "QUIRE_API_KEY": "k"})
    found = {setting.name: setting.value for setting in settings}
    assert (found["port"], found["max_num_seqs"], found["internal_key"]) == (2, 8, "environment")
    assert found["api_key"] == ["k"]


def test_one_text_is_a_list_of_one_in_the_file(tmp_path):
    file = tmp_path / "serve.yaml"
    file.write_text("api-key: sk-1\nserved-model-name: [a, b]\n")
    found = {setting.name: setting.value for setting in resolve("m", {}, file, {})}
    assert found["api_key"] == ["sk-1"]
    assert found["served_model_name"] == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("prot: 1", "'prot', which is no setting. Did you mean port"),
        ("weather: 1", "'weather', which is no setting. See `quire serve --help`"),
        ("[1]", "must hold settings"),
        ("port: 1\na: [", r"serve.yaml:2: is not valid YAML: .*\.$"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, content: str, says: str):
    file = tmp_path / "serve.yaml"
    file.write_text(content)
    with pytest.raises(BadSetting, match=says) as refused:
        resolve("m", {}, file, {})
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(BadSetting, match=r"none.yaml cannot be read: No such file or directory\.$"):
        resolve("m", {}, tmp_path / "none.yaml", {})


def test_a_refused_key_is_not_shown(tmp_path: Path):
    file = tmp_path / "serve.yaml"
    file.write_text("internal-key: 271828\n")
    with pytest.raises(UserError, match=r"^internal_key: ") as refused:
        main(["m", "--config", str(file), "--explain"])
    assert "271828" not in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "needs MODEL"),
        (["m", "--port", "70000"], "port"),
        (["m", "--dtype", "int3"], "dtype"),
        (["m", "--max-model-len", "many"], "max_model_len = 'many': write .* 2048, 2k or 32K, or auto"),
        (["m", "--max-model-len", "0"], "max_model_len"),
        (["m", "--kv-cache-memory", "8X"], "kv_cache_memory = '8X': write .* such as 8Gi"),
        (["m", "--port", "-1", "--max-body-bytes", "x"], "port = -1.* max_body_bytes = 'x': write .* such as 8Gi"),
        (["m", "--default-chat-template-kwargs", "{"], "not JSON"),
        (["m", "--api-key", ""], "api_key"),
        (["m", "--max-num-seqs", "99999999"], "max_num_seqs"),
    ],
)
def test_wrong_values_are_one_sentence(arguments: list[str], says: str):
    with pytest.raises(UserError, match=says):
        main([*arguments, "--explain"])


def test_only_a_whole_choice_is_shown_as_one():
    said = {name: setting_help(name, field) for name, field in settings_fields()}
    assert "One of: auto, cpu, cuda." in said["device"]
    assert "One of" not in said["max_model_len"]


def test_the_command_is_in_the_tree():
    command = [sys.executable, "-m", "quire", "serve", "--help"]
    wide = {**os.environ, "COLUMNS": "200"}
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=wide).stdout
    for flag in ("--served-model-name", "--max-model-len", "--gpu-memory", "--api-key", "--explain", "--config"):
        assert flag in shown
    places = [shown.index(word) for word in ("Engine:", "--max-model-len", "Server:", "--port", "Options:", "--config")]
    assert places == sorted(places), "in groups"


def test_a_path_that_is_not_there_leaves_its_reason(tmp_path, monkeypatch):
    log = tmp_path / "termination-log"
    monkeypatch.setenv("QUIRE_TERMINATION_LOG", str(log))
    with pytest.raises(WeightsNotFound, match="does not exist"):
        main([str(tmp_path / "nothing")])
    assert json.loads(log.read_text())["reason"] == "WeightsNotFound"


@pytest.mark.parametrize(
    ("spoilt", "says"),
    [({}, "max_model_len 99999 is above the model's own limit"), ({"hidden_act": "tanh"}, "hidden_act 'tanh'")],
)
def test_what_config_json_rules_out_is_told_before_the_port_is_taken(tmp_path, monkeypatch, spoilt, says):
    monkeypatch.setattr("quire_runtime.server.start.listen", lambda *_: pytest.fail("the port was taken"))
    stored = json.loads((Path(__file__).parents[2] / "models/quire-tiny/config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(stored | spoilt))
    with pytest.raises(UserError, match=says):
        main([str(tmp_path), "--max-model-len", "99999"])
