"""LLMDeployment (quire.dev/v1alpha1): one served model, as a person writes it and as its status reads.

camelCase on the wire, snake_case in Python. Unknown fields are refused, except under `podTemplate` and `experimental`.
A rule that types cannot say stands twice on purpose: as CEL for the API server, as a validator for everybody else.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from quire_api.v1alpha1_values import CountOrPercent, Duration, KvMemory, Quantity

GROUP = "quire.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "LLMDeployment"
PLURAL = "llmdeployments"
SHORT_NAME = "llmd"
LABEL_DEPLOYMENT = "quire.dev/deployment"

SOURCE_PATTERN = r"^(hf|s3|pvc|oci|file)://.+$"
REASON_PATTERN = r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"
NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
MAX_NAME_LENGTH = 50
MAX_REPLICAS = 1000
"""The names of revisions and services derived from it stay within 63 characters."""
OWNED_FLAGS_PATTERN = r"^--(host|port|served-model-name|model|api-key)(=.*)?$"

SOURCE_MESSAGE = "must begin with hf://, s3://, pvc://, oci:// or file://, for example hf://Qwen/Qwen3-8B"
VOLUME_MESSAGE = "applies to hf://, s3:// and oci:// sources only, whose weights are fetched"
REVISION_MESSAGE = "applies to hf:// sources only"
FLAGS_MESSAGE = (
    "must not set --host, --port, --model, --served-model-name or --api-key: the deployment owns them "
    "(see model.servedNames and access.apiKeysSecretRef)"
)
MIN_MAX_MESSAGE = "minReplicas must not be above maxReplicas"
ROLLOUT_MESSAGE = "maxSurge and maxUnavailable must not both be 0: no rollout could ever take a step"
CUDA_MESSAGE = "engine.device cuda needs resources.gpus of 1 or more"
CPU_MESSAGE = "engine.device cpu does not go with resources.gpus above 0"
NAME_MESSAGE = (
    f"must be at most {MAX_NAME_LENGTH} lowercase letters, digits and '-', begin with a letter and end with none of '-'"
)


def _rules(*rules: tuple[str, str]) -> dict[str, Any]:
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in rules]}


class WireModel(BaseModel):
    """Base of everything in the resource."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        extra="forbid",
        frozen=True,
        strict=True,
        use_attribute_docstrings=True,
    )


class SecretRef(WireModel):
    """A Secret in the namespace of the deployment."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    """Name of the Secret."""


class ModelAuth(WireModel):
    """Credentials for the model's source."""

    secret_ref: SecretRef
    """Secret with the credentials: for hf:// the key `token`; for s3:// `accessKeyId` and `secretAccessKey`, and where
    they are needed `sessionToken`, `region` and `endpoint`; for oci:// `.dockerconfigjson`."""


class WeightsVolume(WireModel):
    """A volume claim of the deployment's own, NAME-weights, that all its pods fetch into and load from."""

    size: Quantity
    """Room for the weights, for example 40Gi. May grow where the storage class allows it. Former models stay in the
    volume when the source changes, so leave room for two."""
    storage_class_name: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """Storage class of the claim. Default: the cluster's default class."""
    access_mode: Literal["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"] = "ReadWriteOnce"
    """ReadWriteMany for replicas on several nodes; with ReadWriteOnce all replicas, and both sides of a rollout, need
    room on one node."""
    when_deleted: Literal["Delete", "Retain"] = "Delete"
    """What becomes of the claim when the LLMDeployment is deleted: it goes too, or stays for the next one of the same
    name."""


class ModelSpec(WireModel):
    """What is served."""

    model_config = ConfigDict(
        json_schema_extra=_rules(
            ("!has(self.revision) || self.source.startsWith('hf://')", f"revision {REVISION_MESSAGE}"),
            ("!has(self.volume) || self.source.matches('^(hf|s3|oci)://')", f"volume {VOLUME_MESSAGE}"),
        )
    )

    source: Annotated[
        str,
        Field(
            max_length=1024,
            json_schema_extra=_rules((f"self.matches('{SOURCE_PATTERN}')", f"source {SOURCE_MESSAGE}")),
        ),
    ]
    """Where the weights are, in Hugging Face format: hf://OWNER/NAME, s3://BUCKET/PREFIX, pvc://CLAIM/PATH,
    oci://REGISTRY/REPOSITORY:TAG or file://PATH (with `quire up`, relative to the file that holds the resource)."""
    revision: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Branch, tag or commit of an hf:// source. Default: the repository's main branch."""
    served_names: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$")]],
            Field(min_length=1, max_length=16, json_schema_extra={"x-kubernetes-list-type": "set"}),
        ]
        | None
    ) = None
    """Names that requests may give as `model`. Default: the name of the deployment. A name taken by an older
    deployment makes this one say NameConflict."""
    auth: ModelAuth | None = None
    """Credentials for the source, where it asks for some."""
    volume: WeightsVolume | None = None
    """Keeps fetched weights in a volume claim, so that later pods need not fetch them again. Default: each pod fetches
    for itself. Without a cluster it has no effect: there downloads are kept anyway."""

    @field_validator("source")
    @classmethod
    def _known_scheme(cls, source: str) -> str:
        if not re.search(SOURCE_PATTERN, source):
            raise PydanticCustomError("form", f'"{source}" {SOURCE_MESSAGE}')
        return source

    @field_validator("served_names")
    @classmethod
    def _unique_names(cls, names: list[str] | None) -> list[str] | None:
        if names and len(set(names)) < len(names):
            raise PydanticCustomError("form", "holds a name twice; remove one")
        return names

    @model_validator(mode="after")
    def _revision_goes_with_hub(self) -> "ModelSpec":
        if self.revision is not None and not self.source.startswith("hf://"):
            raise PydanticCustomError("rule", REVISION_MESSAGE + "; remove it", {"field": "revision"})
        return self

    @model_validator(mode="after")
    def _volume_goes_with_what_is_fetched(self) -> "ModelSpec":
        if self.volume is not None and not re.match("(hf|s3|oci)://", self.source):
            raise PydanticCustomError("rule", VOLUME_MESSAGE + "; remove it", {"field": "volume"})
        return self


class KvCache(WireModel):
    """The paged cache of keys and values."""

    memory: KvMemory | None = None
    """Memory for the cache: a quantity (40Gi), or a fraction of the device's memory that weights and cache together
    may use ("0.9", in quotes). Default: the engine's own choice for its device."""
    block_size: Literal[16, 32, 64] = 16
    """Tokens in one block of the cache; prefixes are shared in whole blocks."""


class EngineSpec(WireModel):
    """How the model is run."""

    model_config = ConfigDict(
        json_schema_extra=_rules(
            (f"self.extraArgs.all(a, !a.matches('{OWNED_FLAGS_PATTERN}'))", f"extraArgs {FLAGS_MESSAGE}"),
        )
    )

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs: cpu, cuda, or auto (cuda where there is a GPU)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of weights and activations; auto takes what the checkpoint was saved in."""
    max_model_len: Annotated[int, Field(ge=1)] | None = None
    """Longest prompt plus answer, in tokens. Default: what the model supports and the memory holds."""
    kv_cache: KvCache = Field(default_factory=KvCache)
    """The paged cache of keys and values."""
    start_timeout: Duration | None = None
    """How long an engine may take from its start until it serves, before it is started anew. Default: by the size of
    the weights, 10m at least. Without a cluster it has no effect."""
    extra_args: Annotated[
        list[Annotated[str, Field(max_length=1024)]],
        Field(max_length=64, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = Field(default_factory=list)
    """More flags for the engine as `quire serve --help` lists them, for example ["--max-num-seqs", "64"]."""

    @field_validator("extra_args")
    @classmethod
    def _leave_owned_flags(cls, args: list[str]) -> list[str]:
        if any(re.search(OWNED_FLAGS_PATTERN, arg) for arg in args):
            raise PydanticCustomError("form", FLAGS_MESSAGE)
        return args


class ResourcesSpec(WireModel):
    """What one replica needs."""

    gpus: Annotated[int, Field(ge=0, le=64)] = 0
    """GPUs of one replica (nvidia.com/gpu; another resource name goes into podTemplate)."""
    cpu: Quantity | None = None
    """CPU cores of one replica, for example 4 or 500m."""
    memory: Quantity | None = None
    """Main memory of one replica, for example 16Gi."""


class ScalingTargets(WireModel):
    """What the scaling law steers by; the target that asks for the most replicas wins."""

    in_flight_per_replica: Annotated[int, Field(ge=1)] = 32
    """Requests that one replica should hold at a time."""
    ttft: Duration | None = None
    """Time to first token to stay below (90th percentile), for example 500ms."""
    itl: Duration | None = None
    """Time between tokens to stay below (90th percentile), for example 50ms."""


class AutoscalingSpec(WireModel):
    """Makes Quire's own law the owner of `replicas`, within these bounds."""

    model_config = ConfigDict(json_schema_extra=_rules(("self.minReplicas <= self.maxReplicas", MIN_MAX_MESSAGE)))

    min_replicas: Annotated[int, Field(ge=0, le=MAX_REPLICAS, json_schema_extra={"format": "int32"})] = 1
    """Fewest replicas. 0 lets an idle deployment go away and come back with the next request."""
    max_replicas: Annotated[int, Field(ge=1, le=MAX_REPLICAS, json_schema_extra={"format": "int32"})]
    """Most replicas."""
    targets: ScalingTargets = Field(default_factory=ScalingTargets)
    """What the scaling law steers by."""
    scale_down_delay: Duration = "5m"
    """How long fewer replicas must have sufficed before one goes; what only a backlog needed goes after a minute."""
    idle_timeout: Duration = "10m"
    """With minReplicas 0: time without a request after which the last replica goes."""

    @model_validator(mode="after")
    def _bounds_in_order(self) -> "AutoscalingSpec":
        if self.min_replicas > self.max_replicas:
            raise PydanticCustomError(
                "rule",
                f"{self.min_replicas} is above maxReplicas ({self.max_replicas}); lower it or raise maxReplicas",
                {"field": "minReplicas"},
            )
        return self


class RoutingSpec(WireModel):
    """How the gateway picks a replica."""

    policy: Literal["prefixCost", "leastLoad", "roundRobin", "random", "consistentHash"] = "prefixCost"
    """prefixCost sends a request where it will be answered soonest, counting cached prefixes and load; the others exist
    for comparison and special cases."""


class RolloutSpec(WireModel):
    """How replicas are exchanged when the deployment changes."""

    model_config = ConfigDict(
        json_schema_extra=_rules(
            (
                "!((type(self.maxSurge) == string ? self.maxSurge.matches('^0+%$') : self.maxSurge == 0) && "
                "(type(self.maxUnavailable) == string ? self.maxUnavailable.matches('^0+%$') "
                ": self.maxUnavailable == 0))",
                ROLLOUT_MESSAGE,
            )
        )
    )

    max_surge: CountOrPercent = 1
    """Replicas that may exist beyond `replicas` during a change: a number, or a percentage (rounded up)."""
    max_unavailable: CountOrPercent = 0
    """Replicas that may be missing during a change: a number, or a percentage (rounded down)."""
    drain_timeout: Duration = "30s"
    """How long a replica that goes away may take to finish the requests it holds."""

    @model_validator(mode="after")
    def _can_take_a_step(self) -> "RolloutSpec":
        if not any(int(str(share).removesuffix("%")) for share in (self.max_surge, self.max_unavailable)):
            raise PydanticCustomError("rule", ROLLOUT_MESSAGE)
        return self


class KeyLimits(WireModel):
    """Limits for each API key; absent means unlimited."""

    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    """Requests begun per minute."""
    input_tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    """Prompt tokens per minute."""
    output_tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    """Generated tokens per minute."""
    concurrency: Annotated[int, Field(ge=1)] | None = None
    """Requests at a time."""


class AccessSpec(WireModel):
    """Who may ask."""

    api_keys_secret_ref: SecretRef | None = None
    """Secret whose every value is an API key; the entry's name is how metrics and logs call the key. Once set, requests
    without one of the keys are refused. Instead of the plain key a value may be a mapping, in YAML or JSON: `key`, and
    as far as wanted `limits`, `priority` (lower goes first), `weight`, `expires` (a time such as 2027-01-31T00:00:00Z)
    and `cacheGroup` (keys of one group share cached prefixes)."""
    limits: KeyLimits | None = None
    """Limits for each API key that does not bring its own; without keys, for all requests together."""
    shared_cache: bool = False
    """Lets all keys find each other's cached prefixes. A shared cache shows in its answering times what others have
    asked; by default each key's is apart."""


class LLMDeploymentSpec(WireModel):
    """The wish."""

    model_config = ConfigDict(
        json_schema_extra=_rules(
            ("self.engine.device != 'cuda' || self.resources.gpus > 0", CUDA_MESSAGE),
            ("self.engine.device != 'cpu' || self.resources.gpus == 0", CPU_MESSAGE),
        )
    )

    model: ModelSpec
    """What is served."""
    engine: EngineSpec = Field(default_factory=EngineSpec)
    """How the model is run."""
    resources: ResourcesSpec = Field(default_factory=ResourcesSpec)
    """What one replica needs."""
    replicas: Annotated[int, Field(ge=0, le=MAX_REPLICAS, json_schema_extra={"format": "int32"})] = 1
    """Number of replicas: the one actuator of scale, written by you, by an HPA through the scale subresource, or by
    Quire's own law where `autoscaling` is set."""
    autoscaling: AutoscalingSpec | None = None
    """Makes Quire's own law the owner of `replicas`, within these bounds."""
    routing: RoutingSpec = Field(default_factory=RoutingSpec)
    """How the gateway picks a replica."""
    rollout: RolloutSpec = Field(default_factory=RolloutSpec)
    """How replicas are exchanged when the deployment changes."""
    access: AccessSpec = Field(default_factory=AccessSpec)
    """Who may ask."""
    pod_template: (
        Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})] | None
    ) = None
    """Native pod template (metadata, spec) merged over Quire's own as kubectl would; the engine's container is called
    `engine`. Without a cluster it has no effect."""
    experimental: (
        Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})] | None
    ) = None
    """Switches that may change or go in any release."""

    @model_validator(mode="after")
    def _device_and_gpus_agree(self) -> "LLMDeploymentSpec":
        if self.engine.device == "cuda" and self.resources.gpus == 0:
            raise PydanticCustomError("rule", CUDA_MESSAGE + "; add resources: {gpus: 1}")
        if self.engine.device == "cpu" and self.resources.gpus > 0:
            raise PydanticCustomError("rule", CPU_MESSAGE + "; remove one of the two")
        return self


class Condition(WireModel):
    """One statement about the deployment, as Kubernetes writes them."""

    type: Annotated[str, Field(max_length=316)]
    """Ready, or one of the leaves that make it: Resolved, Fits, Loaded, Available, Routable."""
    status: Literal["True", "False", "Unknown"]
    """Whether the statement holds."""
    reason: Annotated[str, Field(min_length=1, max_length=1024, pattern=REASON_PATTERN)]
    """Why, as one word."""
    message: Annotated[str, Field(max_length=32768)] = ""
    """Why, as a sentence that says what to do."""
    last_transition_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    """When `status` changed last."""
    observed_generation: Annotated[int, Field(ge=0, json_schema_extra={"format": "int64"})] = 0
    """Generation of the resource that the statement is about."""


class ModelFacts(WireModel):
    """What the running engines say of the model."""

    architecture: str | None = None
    """Architecture as the checkpoint names it."""
    parameters: Annotated[int, Field(ge=0, json_schema_extra={"format": "int64"})] | None = None
    """Number of parameters."""
    context_length: Annotated[int, Field(ge=0)] | None = None
    """Longest prompt plus answer, in tokens, as served."""
    revision: str | None = None
    """Identity of weights, configuration and tokenizer."""


class LLMDeploymentStatus(WireModel):
    """What is."""

    observed_generation: Annotated[int, Field(ge=0, json_schema_extra={"format": "int64"})] = 0
    """Generation of the resource that this status is about."""
    conditions: Annotated[
        list[Condition],
        Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}),
    ] = Field(default_factory=list)
    """Ready and the leaves that make it."""
    replicas: Annotated[int, Field(ge=0, json_schema_extra={"format": "int32"})] = 0
    """Replicas that exist, whatever their state."""
    ready_replicas: Annotated[int, Field(ge=0, json_schema_extra={"format": "int32"})] = 0
    """Replicas that answer and that the gateway routes to."""
    updated_replicas: Annotated[int, Field(ge=0, json_schema_extra={"format": "int32"})] = 0
    """Replicas of the newest revision."""
    selector: str = ""
    """Label selector of the replicas' pods, for autoscalers."""
    url: str = ""
    """Base address of the OpenAI-compatible endpoint."""
    revision: str = ""
    """Hash of the part of the spec that replicas are built from."""
    served_names: Annotated[list[str], Field(json_schema_extra={"x-kubernetes-list-type": "atomic"})] = Field(
        default_factory=list
    )
    """Names under which the model answers."""
    model: ModelFacts | None = None
    """What the running engines say of the model."""

    def condition(self, kind: str) -> Condition | None:
        """The condition of that type, if it has been written."""
        return next((condition for condition in self.conditions if condition.type == kind), None)


class Metadata(BaseModel):
    """The part of metadata that Quire reads; the rest is kept as it is."""

    model_config = ConfigDict(
        alias_generator=to_camel, validate_by_name=True, validate_by_alias=True, extra="allow", frozen=True, strict=True
    )

    name: Annotated[str, Field(min_length=1)]
    namespace: Annotated[str, Field(min_length=1)] = "default"
    generation: int = 1
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    uid: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None

    @field_validator("name")
    @classmethod
    def _short_dns_name(cls, name: str) -> str:
        if len(name) > MAX_NAME_LENGTH or not re.search(NAME_PATTERN, name):
            raise PydanticCustomError("form", f'"{name}" {NAME_MESSAGE}')
        return name


class LLMDeployment(WireModel):
    """One model served by Quire: weights, engine, number of replicas, and how requests reach them."""

    model_config = ConfigDict(
        json_schema_extra=_rules(
            (
                f"self.metadata.name.size() <= {MAX_NAME_LENGTH} && self.metadata.name.matches('{NAME_PATTERN}')",
                f"metadata.name {NAME_MESSAGE}",
            ),
        )
    )

    api_version: Literal["quire.dev/v1alpha1"] = "quire.dev/v1alpha1"
    kind: Literal["LLMDeployment"] = "LLMDeployment"
    metadata: Metadata
    spec: LLMDeploymentSpec
    status: LLMDeploymentStatus = Field(default_factory=LLMDeploymentStatus)

    @property
    def served_names(self) -> list[str]:
        """Names that requests may give as `model`."""
        return self.spec.model.served_names or [self.metadata.name]

    def to_object(self) -> dict[str, Any]:
        """The resource as plain data, camelCase, absent fields left out."""
        return self.model_dump(by_alias=True, exclude_none=True)


FREE_FORM_FIELDS = ("podTemplate", "experimental")


def from_object(data: Mapping[str, Any]) -> LLMDeployment:
    """The resource from plain data; null counts as absent, as the API server has it.

    Raises:
        pydantic.ValidationError: with camelCase locations.
    """
    return LLMDeployment.model_validate(_without_nulls(data), by_alias=True, by_name=False)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            key: inner if key in FREE_FORM_FIELDS else _without_nulls(inner)
            for key, inner in value.items()
            if inner is not None
        }
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value
