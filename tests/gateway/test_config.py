"""Settings: flags over environment over defaults, each with its provenance."""

import subprocess
import sys

import pytest

from quire_gateway.config import BadConfig, GatewayConfig
from quire_gateway.main import main


def test_flags_beat_environment_beats_defaults(monkeypatch):
    monkeypatch.setenv("QUIRE_GATEWAY_PORT", "81")
    monkeypatch.setenv("QUIRE_GATEWAY_HOST", "0.0.0.0")
    monkeypatch.setenv("QUIRE_INTERNAL_KEY", "inner")
    config = GatewayConfig.from_flags(["--port", "82", "--hold-timeout-s", "1.5"])
    assert (config.port, config.host, config.hold_timeout_s, config.internal_key) == (82, "0.0.0.0", 1.5, "inner")
    told = config.provenance()
    assert told["port"] == told["hold_timeout_s"] == "flag"
    assert told["host"] == told["internal_key"] == "environment"
    assert told["max_attempts"] == "default"


def test_secrets_are_not_shown():
    assert "inner" not in repr(GatewayConfig.from_flags(["--internal-key", "inner"]))


@pytest.mark.parametrize(
    "flags", [["--port", "-1"], ["--port", "99999"], ["--max-body-bytes", "0"], ["--hold-timeout-s", "nan"]]
)
def test_values_out_of_range_name_the_flag(flags):
    with pytest.raises(BadConfig, match=flags[0]):
        GatewayConfig.from_flags(flags)


def test_a_directory_as_routing_table_is_refused(tmp_path, capsys):
    assert main(["--routing-table", str(tmp_path), "--port", "0"]) == 2
    assert f"--routing-table {tmp_path} is a directory. Name the file in it." in capsys.readouterr().err


def test_an_unknown_flag_is_exit_code_2():
    with pytest.raises(SystemExit) as caught:
        GatewayConfig.from_flags(["--prot", "1"])
    assert caught.value.code == 2


@pytest.mark.parametrize(("variable", "value"), [("QUIRE_GATEWAY_PORT", "many"), ("QUIRE_GATEWAY_WORKERS", "0")])
def test_values_out_of_range_name_the_variable(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(BadConfig, match=variable):
        GatewayConfig.from_flags([])


def test_a_start_waits_for_no_library_that_it_may_do_without():
    """pydantic and jinja2 were two thirds of the CPU time until a gateway knew of the others."""
    program = "import sys, quire_gateway.main; print({'pydantic', 'jinja2'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "set()\n"
