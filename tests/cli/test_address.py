"""The address of a server, as it is typed."""

import pytest

from quire.address import BadAddress, base_address, is_loopback
from quire.chat import connect
from quire.gateway_pages import GatewayPages


@pytest.mark.parametrize(
    ("typed", "base"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000"),
        ("https://models.example/team/v1", "https://models.example/team"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_v1_may_be_there_or_not(typed, base):
    assert base_address(typed) == base
    assert str(connect(typed).base_url) == f"{base}/v1/"
    assert GatewayPages(typed).url == base


@pytest.mark.parametrize(
    "typed",
    ["", "localhost", "127.0.0.1:8000", "ftp://host", "http://", "http://[::1", "http://host:99999", "http://host:port",
     "http://host:0", "http://a..b", "http://ho st"],
)  # fmt: skip
@pytest.mark.parametrize("use", [base_address, connect, GatewayPages])
def test_what_names_no_server_is_said_to_be_none(typed, use):
    with pytest.raises(BadAddress, match="http://HOST:PORT"):
        use(typed)


def test_what_is_of_this_machine_is_known():
    assert all(is_loopback(f"http://{host}:8000") for host in ("localhost", "127.0.0.1", "127.3.4.5", "[::1]"))
    assert not any(is_loopback(f"http://{host}") for host in ("gateway", "10.0.0.1", "localhost.example", "[fe80::1]"))
