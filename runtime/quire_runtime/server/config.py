"""The configuration of one pod's HTTP server: names and meanings as `vllm serve` where they are the same."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from quire_runtime.config import invalid, parse_bytes


class ServerConfig(BaseModel):
    """How the API is served. Build it with `ServerConfig.of(**values)` to get a UserError on bad values."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    host: str = Field("0.0.0.0", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    served_model_name: list[str] = Field(
        [], description="Names clients may ask for, one or more; by default the model as given."
    )
    api_key: list[Annotated[str, Field(min_length=1)]] = Field(
        [], description="Keys that clients must send one of; with one set, all but probes and metrics need it."
    )
    internal_key: str = Field(
        "", description="Key between gateway and engine; opens /internal and passes as an API key."
    )
    chat_template: str | None = Field(None, description="A template, or a file that holds one, instead of the model's.")
    default_chat_template_kwargs: dict[str, Any] = Field({}, description="Variables that every chat template sees.")
    trust_request_chat_template: bool = Field(False, description="Let requests bring a chat template of their own.")
    max_body_bytes: Annotated[int, BeforeValidator(parse_bytes)] = Field(
        32 << 20, ge=1024, description="Longest request body, for example 32Mi."
    )
    shutdown_timeout: float = Field(30.0, ge=0, description="Seconds that running requests get on SIGTERM.")
    heartbeat_timeout: float = Field(
        120.0, gt=0, description="Seconds of silence after which /health calls the engine hung."
    )
    disable_access_log: bool = Field(False, description="Do not log each request.")
    uvicorn_log_level: Literal["critical", "error", "warning", "info", "debug"] = "info"
    otlp_traces_endpoint: str = Field(
        "", description="OTLP/HTTP address for spans of requests, as http://collector:4318/v1/traces; empty: none."
    )
    root_path: str = Field("", description="Path prefix that a proxy in front strips.")
    ssl_certfile: str | None = Field(None, description="Certificate, to serve https.")
    ssl_keyfile: str | None = Field(None, description="Key of the certificate.")

    @classmethod
    def of(cls, **values: Any) -> "ServerConfig":
        """
        Raises:
            InvalidConfig: names every setting that does not fit, and why.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            raise invalid(error) from None
