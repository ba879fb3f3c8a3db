"""Every setting of the operator, in one place."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from quire_api.errors import UserError
from quire_api.version import __version__


class BadConfig(UserError):
    """A flag or environment variable has a value that cannot be used."""


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Names = Annotated[list[str], NoDecode, BeforeValidator(_split)]


class OperatorConfig(BaseSettings):
    """Flags are the fields with dashes (`--leader-elect`); variables are QUIRE_OPERATOR_LEADER_ELECT and so on."""

    model_config = SettingsConfigDict(env_prefix="QUIRE_OPERATOR_", extra="forbid", populate_by_name=True)

    kubeconfig: Path | None = Field(None, description="File to use instead of the pod's own account.")
    namespaces: Names = Field([], description="Namespaces to work in, comma-separated; empty means all.")
    namespace: str = Field("", description="Where the lease, the routing table and the gateways are; default: our own.")
    leader_elect: bool = Field(True, description="Write only while holding the lease.")
    lease: str = Field("quire-operator", description="Name of the lease.")
    lease_duration_s: float = Field(
        15.0, ge=3, description="Seconds until another may take over a silent holder's lease."
    )
    identity: str = Field("", description="Our name on the lease; default: the host's name and a random end.")
    host: str = Field("0.0.0.0", description="Address of /healthz, /readyz and /metrics.")
    port: int = Field(8080, ge=0, le=65535, description="Port of /healthz, /readyz and /metrics; 0 takes a free one.")
    engine_image: str = Field(f"quire/runtime:{__version__}", description="Image of the engines, by tag or digest.")
    agent_image: str = Field(
        f"quire/agent:{__version__}", description="Image of the agents that fetch models, by tag or digest."
    )
    image_pull_policy: str = Field("IfNotPresent", description="Pull policy of both images.")
    image_pull_secrets: Names = Field([], description="Pull secrets of the engines' pods, comma-separated.")
    agent_port: int = Field(8001, ge=1, le=65535, description="Port of the agents.")
    renewals: int = Field(
        1, ge=0, description="Deployments whose replicas are exchanged at a time after an upgrade; 0: none by itself."
    )
    renewal_patience_s: float = Field(
        300.0, ge=0, description="Seconds after which one that finds no room for a new replica lets others begin."
    )
    gpu_resource: str = Field("nvidia.com/gpu", description="Resource name of a GPU.")
    routing_secret: str = Field("quire-routing", description="Secret with the routing table that gateways follow.")
    gateway_url: str = Field("", description="Base address that users are told; default: the gateway's Service.")
    gateway_labels: str = Field("app.kubernetes.io/name=quire-gateway", description="Labels of the gateways' pods.")
    gateway_port: int = Field(8000, ge=1, le=65535, description="Port of the gateways' pods.")
    monitoring_namespace: str = Field("", description="Namespace whose pods may read the engines' metrics.")
    gateway_addresses: Names = Field([], description="Gateways by address, where they are not pods to be found.")
    internal_key: str = Field(
        "",
        validation_alias=AliasChoices("QUIRE_INTERNAL_KEY", "QUIRE_OPERATOR_INTERNAL_KEY"),
        repr=False,
        description="Key of the gateways' internal pages.",
    )
    log_level: str = Field("info", description="debug, info, warning or error.")

    @classmethod
    def from_flags(cls, argv: Sequence[str]) -> "OperatorConfig":
        """Settings from flags over environment over defaults.

        Raises:
            BadConfig: a value is out of range or of the wrong type.
            SystemExit: an unknown flag (2), or --help (0).
        """
        parser = argparse.ArgumentParser("quire-operator", description="Quire's operator.", allow_abbrev=False)
        for name, field in cls.model_fields.items():
            default = "" if field.default in ("", None, []) else f" [{field.default}]"
            parser.add_argument(
                f"--{name.replace('_', '-')}",
                default=argparse.SUPPRESS,
                help=f"{field.description}{default}",
                **({"nargs": "?", "const": "true"} if field.annotation is bool else {}),  # type: ignore[arg-type]
            )
        try:
            return cls(**vars(parser.parse_args(argv)))
        except ValidationError as error:
            first = error.errors()[0]
            name = "_".join(str(part) for part in first["loc"])
            raise BadConfig(f"--{name.replace('_', '-')}: {first['msg']}.") from None
