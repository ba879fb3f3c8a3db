"""Every setting of the gateway, in one place, each with where its value came from."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, PrivateAttr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from quire_api.errors import UserError

Provenance = Literal["default", "environment", "flag"]
Seconds = Annotated[float, Field(gt=0)]


class BadConfig(UserError):
    """A flag or environment variable has a value that cannot be used."""


class GatewayConfig(BaseSettings):
    """Flags are the fields with dashes (`--routing-table`); variables are QUIRE_GATEWAY_ROUTING_TABLE and so on."""

    model_config = SettingsConfigDict(env_prefix="QUIRE_GATEWAY_", extra="forbid", populate_by_name=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    tls_certificate: Path | None = Field(
        None, description="PEM file with the certificate chain; with it, TLS is served on a port of its own."
    )
    tls_key: Path | None = Field(None, description="PEM file with the certificate's key. Both are re-read on change.")
    tls_port: int = Field(8443, ge=0, le=65535, description="Port of TLS; 0 takes a free one.")
    routing_table: Path | None = Field(None, description="File with the RoutingTable (JSON) to follow.")
    kubernetes_table: str = Field("", description="NAMESPACE/NAME of the Secret with the table, in a cluster.")
    kubeconfig: Path | None = Field(None, description="File to use instead of the pod's own account.")
    namespaces: str = Field("", description="Namespaces whose pods are watched, comma-separated; empty means all.")
    internal_key: str = Field(
        "",
        validation_alias=AliasChoices("QUIRE_INTERNAL_KEY", "QUIRE_GATEWAY_INTERNAL_KEY"),
        repr=False,
        description="Key that /internal/* asks for; empty leaves it open.",
    )
    peers: str = Field(
        "", description="HOST:PORT of the other gateways, comma-separated; a name stands for all its addresses."
    )
    workers: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes that serve together; each can use one core. In a cluster add pods instead.",
    )
    worker_silence_s: float = Field(
        10.0,
        ge=0,
        description="A worker whose loop has not turned for so long is killed and started again; 0 is never.",
    )
    access_log: str = Field(
        "-", description="File for the access log (JSON lines); `-` is standard output, empty is off."
    )
    otlp_traces_endpoint: str = Field(
        "", description="OTLP/HTTP address for spans of requests, as http://collector:4318/v1/traces; empty: none."
    )
    max_header_bytes: int = Field(64 * 1024, gt=0, description="Longest request head.")
    max_body_bytes: int = Field(32 * 1024 * 1024, gt=0, description="Longest request body.")
    max_buffered_bytes: int = Field(
        256 * 1024 * 1024,
        gt=0,
        description="Most bytes of all requests' bodies together, in one process; no less than --max-body-bytes.",
    )
    max_in_flight_per_replica: int = Field(512, gt=0, description="Most requests at one replica.")
    saturation: float = Field(
        1.25,
        ge=0,
        description="Requests per sequence slot of a replica; the others wait here, in fair order. 0: no bound.",
    )
    max_held: int = Field(1024, ge=0, description="Requests of one deployment that may wait, then 429 or 503.")
    hold_timeout_s: Seconds = Field(60.0, description="How long a request waits for a replica or its turn before 503.")
    max_attempts: int = Field(3, ge=1, description="Replicas that one request may be sent to, one after the other.")
    max_moves: int = Field(
        8, ge=0, description="Times that a stream whose replica broke is continued on another one; 0 is never."
    )
    retry_ratio: float = Field(0.2, ge=0, description="Charged retries per request of a deployment, in the long run.")
    hedge_after_s: float = Field(
        0.0,
        ge=0,
        description="A stream that has not begun after so long is asked of a second replica too; 0: never.",
    )
    upstream_silence_s: Seconds = Field(600.0, description="A replica that sends nothing for so long has failed.")
    outlier_base_ejection_s: Seconds = Field(
        15.0, description="How long a replica gets nothing that answers far worse than the others; longer each time."
    )
    outlier_max_ejection_percent: float = Field(
        34.0, ge=0, le=100, description="Most replicas left out for it at a time; one may always be. 0: none ever."
    )
    probe_timeout_s: Seconds = Field(30.0, description="Time a replica has to write its first token.")
    warm_timeout_s: float = Field(
        10.0,
        ge=0,
        le=600,
        description="Time a new replica has to compute its siblings' hottest prefixes before it gets requests; 0: off.",
    )
    warm_tokens: int = Field(
        65536, ge=0, le=1 << 18, description="Most tokens of these; no more than half of its KV cache."
    )
    tokenizer_threads: int = Field(2, gt=0, description="Threads that tokenise long prompts.")
    drain_grace_s: float = Field(0.0, ge=0, description="After SIGTERM, time in which new requests are still served.")
    shutdown_timeout_s: Seconds = Field(300.0, description="After SIGTERM, time for requests in flight to end.")

    _flags: frozenset[str] = PrivateAttr(frozenset())

    @classmethod
    def from_flags(cls, argv: Sequence[str]) -> "GatewayConfig":
        """Settings from flags over environment over defaults.

        Raises:
            BadConfig: a value is out of range or of the wrong type.
            SystemExit: an unknown flag (2), or --help (0).
        """
        parser = argparse.ArgumentParser("quire-gateway", description="Quire's gateway.", allow_abbrev=False)
        for name, field in cls.model_fields.items():
            default = "" if field.default in ("", None) else f" [{field.default}]"
            parser.add_argument(
                f"--{name.replace('_', '-')}", default=argparse.SUPPRESS, help=f"{field.description}{default}"
            )
        flags: dict[str, Any] = vars(parser.parse_args(argv))
        try:
            config = cls(**flags)
        except ValidationError as error:
            first = error.errors()[0]
            name = "_".join(str(part) for part in first["loc"])
            raise BadConfig(f"--{name.replace('_', '-')}: {first['msg']}.") from None
        config._flags = frozenset(flags)
        return config

    def provenance(self) -> dict[str, Provenance]:
        """Where each value came from."""
        return {
            name: "flag" if name in self._flags else "environment" if name in self.model_fields_set else "default"
            for name in type(self).model_fields
        }
