"""TLS at the gateway with a real client: streams, renewal without a restart, and files that are no certificate."""

import asyncio
import datetime
import ssl
from pathlib import Path

import httpx
import openai
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from quire_gateway.config import GatewayConfig
from quire_gateway.gateway import Gateway
from quire_gateway.main import main
from quire_gateway.tls import BadCertificate

DEADLINE_S = 60.0


def write_pair(folder: Path, serial: int) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    chain, secret = folder / "tls.crt", folder / "tls.key"
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return chain, secret


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return write_pair(tmp_path, 1)


@pytest.fixture
async def secure(make_world, pair):
    return await make_world(1, tls_certificate=pair[0], tls_key=pair[1], tls_port=0, host="localhost")


async def serial(world) -> int:
    """Of the certificate that a new connection is shown."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection("localhost", world.gateway.tls_port, ssl=context)
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return x509.load_der_x509_certificate(shown).serial_number


async def until_shown(world, wanted: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while await serial(world) != wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_a_client_that_verifies_streams_over_tls_and_plain_http_stays_for_probes(secure, pair):
    context = ssl.create_default_context(cafile=str(pair[0]))
    async with httpx.AsyncClient(verify=context) as http:
        client = openai.AsyncOpenAI(
            base_url=f"https://localhost:{secure.gateway.tls_port}/v1", api_key="none", http_client=http
        )
        stream = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "w1"}], stream=True
        )
        assert len([event async for event in stream]) > 3
    async with secure.http() as http:
        assert (await http.get("/ready")).status_code == 200


async def test_a_renewed_certificate_is_shown_without_a_restart_and_a_broken_one_is_not(secure, pair, tmp_path):
    assert await serial(secure) == 1
    write_pair(tmp_path, 2)
    await until_shown(secure, 2)
    pair[1].write_text("not a key")
    with pytest.raises(BadCertificate, match="are no certificate with its key"):
        secure.gateway._certificate.look()
    assert await serial(secure) == 2
    write_pair(tmp_path, 3)
    await until_shown(secure, 3)


async def test_who_speaks_no_tls_there_harms_nobody(secure, pair):
    reader, writer = await asyncio.open_connection("localhost", secure.gateway.tls_port)
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    await reader.read()
    writer.close()
    assert await serial(secure) == 1


@pytest.mark.parametrize("broken", ["missing", "key", "alone", "empty"])
def test_without_a_certificate_the_gateway_does_not_start(pair, tmp_path, broken, capsys):
    chain, key = pair
    flags = ["--tls-certificate", str(chain)] + ([] if broken == "alone" else ["--tls-key", str(key)])
    if broken == "missing":
        chain.unlink()
    elif broken == "key":
        (tmp_path / "other").mkdir()
        key.write_bytes(write_pair(tmp_path / "other", 2)[1].read_bytes())
    elif broken == "empty":
        chain.write_text("")
    table = tmp_path / "table.json"
    assert main(["--routing-table", str(table), "--port", "0", *flags]) == 2
    assert "quire-gateway: " in (said := capsys.readouterr().err)
    assert "Secret" in said or "--tls-key" in said


async def test_renewal_ends_with_the_gateway(pair, tmp_path):
    settings = {"routing_table": tmp_path / "t", "port": 0, "tls_port": 0, "access_log": ""}
    gateway = Gateway(GatewayConfig(**settings, tls_certificate=pair[0], tls_key=pair[1]))
    await gateway.start()
    renewal = gateway._renewal
    await gateway.close()
    await asyncio.sleep(0)
    assert renewal.cancelled()
