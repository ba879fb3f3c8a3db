# ruff: noqa: RUF009
"""Every setting of the gateway, in one place, each with where its value came from.

In msgspec, not pydantic: importing that is half of the CPU time of a gateway's start, and a gateway that starts late is
one too few.
"""

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from quire_api.errors import UserError

Provenance = Literal["default", "environment", "flag"]
Seconds = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(gt=0)]
Port = Annotated[int, Meta(ge=0, le=65535)]
PREFIX = "QUIRE_GATEWAY_"
_OTHER_VARIABLES = {"internal_key": "QUIRE_INTERNAL_KEY"}
"""Names that go before those with the prefix."""


class BadConfig(UserError):
    """A flag or environment variable has a value that cannot be used."""


def _setting(default: Any, meaning: str, *, is_secret: bool = False) -> Any:
    return field(default=default, repr=not is_secret, metadata={"meaning": meaning})


@dataclass(kw_only=True, slots=True)
class GatewayConfig:
    """Flags are the fields with dashes (`--routing-table`); variables are QUIRE_GATEWAY_ROUTING_TABLE and so on."""

    host: str = _setting("127.0.0.1", "Address to listen on.")
    port: Port = _setting(8000, "Port to listen on; 0 takes a free one.")
    tls_certificate: Path | None = _setting(
        None, "PEM file with the certificate chain; with it, TLS is served on a port of its own."
    )
    tls_key: Path | None = _setting(None, "PEM file with the certificate's key. Both are re-read on change.")
    tls_port: Port = _setting(8443, "Port of TLS; 0 takes a free one.")
    routing_table: Path | None = _setting(None, "File with the RoutingTable (JSON) to follow.")
    kubernetes_table: str = _setting("", "NAMESPACE/NAME of the Secret with the table, in a cluster.")
    kubeconfig: Path | None = _setting(None, "File to use instead of the pod's own account.")
    namespaces: str = _setting("", "Namespaces whose pods are watched, comma-separated; empty means all.")
    internal_key: str = _setting("", "Key that /internal/* asks for; empty leaves it open.", is_secret=True)
    peers: str = _setting("", "HOST:PORT of the other gateways, comma-separated; a name stands for all its addresses.")
    workers: Annotated[int, Meta(ge=1, le=64)] = _setting(
        1, "Processes that serve together; each can use one core. In a cluster add pods instead."
    )
    worker_silence_s: NotNegative = _setting(
        10.0, "A worker whose loop has not turned for so long is killed and started again; 0 is never."
    )
    access_log: str = _setting("-", "File for the access log (JSON lines); `-` is standard output, empty is off.")
    otlp_traces_endpoint: str = _setting(
        "", "OTLP/HTTP address for spans of requests, as http://collector:4318/v1/traces; empty: none."
    )
    max_header_bytes: Positive = _setting(64 * 1024, "Longest request head.")
    max_body_bytes: Positive = _setting(32 * 1024 * 1024, "Longest request body.")
    max_buffered_bytes: Positive = _setting(
        256 * 1024 * 1024, "Most bytes of all requests' bodies together, in one process; no less than --max-body-bytes."
    )
    max_in_flight_per_replica: Positive = _setting(512, "Most requests at one replica.")
    saturation: NotNegative = _setting(
        1.25, "Requests per sequence slot of a replica; the others wait here, in fair order. 0: no bound."
    )
    max_held: Count = _setting(1024, "Requests of one deployment that may wait, then 429 or 503.")
    hold_timeout_s: Seconds = _setting(60.0, "How long a request waits for a replica or its turn before 503.")
    max_attempts: Positive = _setting(3, "Replicas that one request may be sent to, one after the other.")
    max_moves: Count = _setting(8, "Times that a stream whose replica broke is continued on another one; 0 is never.")
    retry_ratio: NotNegative = _setting(0.2, "Charged retries per request of a deployment, in the long run.")
    hedge_after_s: NotNegative = _setting(
        0.0, "A stream that has not begun after so long is asked of a second replica too; 0: never."
    )
    upstream_silence_s: Seconds = _setting(600.0, "A replica that sends nothing for so long has failed.")
    outlier_base_ejection_s: Seconds = _setting(
        15.0, "How long a replica gets nothing that answers far worse than the others; longer each time."
    )
    outlier_max_ejection_percent: Annotated[float, Meta(ge=0, le=100)] = _setting(
        34.0, "Most replicas left out for it at a time; one may always be. 0: none ever."
    )
    probe_timeout_s: Seconds = _setting(30.0, "Time a replica has to write its first token.")
    warm_timeout_s: Annotated[float, Meta(ge=0, le=600)] = _setting(
        10.0, "Time a new replica has to compute its siblings' hottest prefixes before it gets requests; 0: off."
    )
    warm_tokens: Annotated[int, Meta(ge=0, le=1 << 18)] = _setting(
        65536, "Most tokens of these; no more than half of its KV cache."
    )
    tokenizer_threads: Positive = _setting(2, "Threads that tokenise long prompts.")
    drain_grace_s: NotNegative = _setting(0.0, "After SIGTERM, time in which new requests are still served.")
    shutdown_timeout_s: Seconds = _setting(300.0, "After SIGTERM, time for requests in flight to end.")

    given: dict[str, Provenance] = field(default_factory=dict, repr=False)
    """Where values came from; no flag."""

    @classmethod
    def from_flags(cls, argv: Sequence[str], environment: Mapping[str, str] = os.environ) -> "GatewayConfig":
        """Settings from flags over environment over defaults.

        Raises:
            BadConfig: a value is out of range or of the wrong type.
            SystemExit: an unknown flag (2), or --help (0).
        """
        parser = argparse.ArgumentParser("quire-gateway", description="Quire's gateway.", allow_abbrev=False)
        for setting in settings():
            default = f" [{setting.default}]" if setting.default else ""
            parser.add_argument(setting.flag, default=argparse.SUPPRESS, help=f"{setting.meaning}{default}")
        flags: dict[str, Any] = vars(parser.parse_args(argv))
        values: dict[str, Any] = {}
        given: dict[str, Provenance] = {}
        for setting in settings():
            found = next((environment[name] for name in setting.variables if name in environment), None)
            if setting.name in flags:
                values[setting.name], given[setting.name] = flags[setting.name], "flag"
            elif found is not None:
                values[setting.name], given[setting.name] = found, "environment"
        try:
            config = msgspec.convert(values, cls, strict=False, dec_hook=_path)
        except msgspec.ValidationError as error:
            what, _, where = str(error).partition(" - at `$.")
            name = where.rstrip("`")
            shown = f"--{name.replace('_', '-')}" if given.get(name) == "flag" else _variable(name, environment)
            raise BadConfig(f"{shown}: {what}.") from None
        config.given = given
        return config

    def provenance(self) -> dict[str, Provenance]:
        """Where each value came from."""
        return {setting.name: self.given.get(setting.name, "default") for setting in settings()}


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as a person sees it. variables: of the environment, the first that is there counts."""

    name: str
    flag: str
    variables: tuple[str, ...]
    default: str
    meaning: str


def settings() -> Iterator[Setting]:
    """All of them, in their order."""
    for each in fields(GatewayConfig):
        if (meaning := each.metadata.get("meaning")) is not None:
            default = "" if each.default in ("", None) else str(each.default)
            yield Setting(each.name, f"--{each.name.replace('_', '-')}", _variables(each.name), default, meaning)


def _variables(name: str) -> tuple[str, ...]:
    other = (_OTHER_VARIABLES[name],) if name in _OTHER_VARIABLES else ()
    return (*other, f"{PREFIX}{name.upper()}")


def _variable(name: str, environment: Mapping[str, str]) -> str:
    return next(variable for variable in _variables(name) if variable in environment)


def _path(kind: type, value: Any) -> Any:
    """msgspec knows no paths."""
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError
