"""What crosses a process border between gateway, engines and operator: headers, model facts, the routing table.

All types are msgspec structs, sent as JSON unless said otherwise; unknown fields are ignored, so that either side may
be newer.
"""

import msgspec

WIRE_VERSION = 1

# Sent by the gateway, honoured by an engine only beside the deployment's internal key.
HEADER_INTERNAL_KEY = "x-quire-internal-key"
HEADER_CACHE_SALT = "x-quire-cache-salt"
HEADER_PRIORITY = "x-quire-priority"
HEADER_REQUEST_ID = "x-request-id"

# Set by the gateway on its answers.
HEADER_REPLICA = "x-quire-replica"
HEADER_REASON = "x-quire-reason"
HEADER_CACHED_TOKENS = "x-quire-cached-tokens"
HEADER_INDEX_MODE = "x-quire-index-mode"
HEADER_ATTEMPTS = "x-quire-attempts"


class ModelInfo(msgspec.Struct, kw_only=True):
    """GET /internal/v1/model of an engine: what a gateway must know to hash and count as the engine does."""

    served_names: list[str]
    model_revision: str
    """First field of the block-hash root; equal on replicas that may share prefixes."""
    block_size: int
    block_format: int
    max_model_len: int
    tokenizer_digest: str
    """SHA-256 (hex) of the bundle at /internal/v1/tokenizer."""
    kv_capacity_tokens: int
    max_num_seqs: int
    engine_epoch: str
    """Changes with every start of the engine process."""
    architecture: str = ""
    """As the checkpoint names it; empty: not said."""
    num_parameters: int = 0
    """0: not said."""
    version: int = WIRE_VERSION


class Replica(msgspec.Struct, kw_only=True):
    """One engine as discovery knows it."""

    id: str
    url: str
    """Base address without a trailing slash, for example http://127.0.0.1:8101."""
    is_draining: bool = False


class Deployment(msgspec.Struct, kw_only=True):
    """One LLMDeployment as the gateway serves it."""

    name: str
    namespace: str
    served_names: list[str]
    policy: str = "prefixCost"
    internal_key: str = ""
    api_keys: list[str] = []
    """Plain keys that may use this deployment; empty: everybody may."""
    replicas: list[Replica] = []


class RoutingTable(msgspec.Struct, kw_only=True):
    """The file that discovery without a cluster writes (atomically replaced) and the gateway follows."""

    deployments: list[Deployment] = []
    version: int = WIRE_VERSION


class ReplicaReport(msgspec.Struct, kw_only=True):
    """What a gateway says of one replica at GET /internal/v1/replicas."""

    deployment: str
    namespace: str
    replica: str
    is_routable: bool
    """True once one token was probed through this gateway and while the replica is not ejected."""
    in_flight: int
    reason: str = ""


class GatewayReport(msgspec.Struct, kw_only=True):
    replicas: list[ReplicaReport] = []
    version: int = WIRE_VERSION
