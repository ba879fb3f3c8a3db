"""What crosses a process border between gateway, engines and operator: headers, model facts, the routing table.

All types are msgspec structs, sent as JSON unless said otherwise; unknown fields are ignored, so that either side may
be newer.
"""

from typing import Literal

import msgspec

WIRE_VERSION = 1

IndexMode = Literal["EXACT", "DEGRADED", "FALLBACK"]
"""How a gateway knows a replica's cache: told by its engine without a gap; told before, and a snapshot is awaited; or
not told, so that it goes by what it sent there itself."""

# Sent by the gateway, honoured by an engine only beside the deployment's internal key.
HEADER_INTERNAL_KEY = "x-quire-internal-key"
HEADER_CACHE_SALT = "x-quire-cache-salt"
HEADER_PRIORITY = "x-quire-priority"
HEADER_REQUEST_ID = "x-request-id"
HEADER_SESSION = "x-quire-session"
"""A client's own name for a conversation: its requests go to one replica where that costs little."""

# Set by the gateway on its answers.
HEADER_REPLICA = "x-quire-replica"
HEADER_REASON = "x-quire-reason"
HEADER_CACHED_TOKENS = "x-quire-cached-tokens"
HEADER_INDEX_MODE = "x-quire-index-mode"
HEADER_MISS = "x-quire-miss"
"""Why the replica was believed to have no more of the prompt cached; absent if it had all of it."""
HEADER_ATTEMPTS = "x-quire-attempts"
HEADER_QUEUE_MS = "x-quire-queue-ms"
"""How long the request was held because no replica could take it."""
HEADER_QUEUE_POSITION = "x-quire-queue-position"
"""Its place among the held ones when it came; only on requests that were held."""
HEADER_QUEUE_DEADLINE = "x-quire-queue-deadline"
"""Until when it would have been held, Unix time in seconds; only on requests that were held."""


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
    adapter: str = ""
    """Second field of the block-hash root: the adapter that all its answers are given with; empty for none."""
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


class KeyLimits(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What one API key may use; None means unlimited."""

    requests_per_minute: int | None = None
    input_tokens_per_minute: int | None = None
    output_tokens_per_minute: int | None = None
    concurrency: int | None = None


class ApiKey(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One API key of a deployment."""

    name: str
    """What logs and metrics call it."""
    key: str
    limits: KeyLimits = msgspec.field(default_factory=KeyLimits)
    priority: int = 0
    """Lower goes first, as in vLLM."""
    weight: float = 1.0
    """Its share beside other keys of its priority when requests have to wait."""
    expires_at: float | None = None
    """Unix time in seconds."""
    cache_group: str = ""
    """Keys of one group find each other's cached prefixes; empty: it shares with nobody."""


class Deployment(msgspec.Struct, kw_only=True):
    """One LLMDeployment as the gateway serves it."""

    name: str
    namespace: str
    served_names: list[str]
    policy: str = "prefixCost"
    internal_key: str = ""
    api_keys: list[str | ApiKey] = []
    """Keys that may use this deployment, a plain one without limits; empty: everybody may."""
    limits: KeyLimits = msgspec.field(default_factory=KeyLimits)
    """Where there are no keys: what everybody together may use."""
    shares_cache: bool = False
    """All keys find each other's cached prefixes."""
    replicas: list[Replica] = []
    scales_from_zero: bool = False
    """It may have no replica on purpose: gateways are ready without one, and hold its requests until it wakes."""


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
    queued_tokens: int = 0
    """Prompt tokens sent there and not answered yet, less what was cached of them."""
    warmth: float = 0.0
    """Prompt tokens that its cache has saved through this gateway; each counts half after ten minutes."""
    url: str = ""
    index_mode: IndexMode = "FALLBACK"
    index_blocks: int = 0
    """Blocks that it holds (EXACT), or is believed to hold."""
    index_problem: str = ""
    """Why its cache is not known exactly; empty while it is."""
    model: ModelInfo | None = None
    """What the engine says of itself; None before its first answer."""


class ModelShape(msgspec.Struct, kw_only=True, frozen=True):
    """How large a model is, as its config.json and the list of its files say."""

    architecture: str
    weight_bytes: int
    """Of the files, in the checkpoint's own type."""
    value_bytes: int
    """Bytes of one number of the checkpoint: 2 or 4."""
    kv_values_per_token: int
    """Numbers that the cache holds for one token, keys and values of all layers."""
    max_positions: int
    """Longest prompt plus answer that the model was made for, in tokens."""


class AgentProgress(msgspec.Struct, kw_only=True, frozen=True):
    """GET /progress of the agent beside an engine: the part that others read."""

    phase: str
    """starting, waiting, fetching, complete, failed or stopped."""
    bytes_done: int = 0
    bytes_total: int = 0
    """0 until the store has listed the model."""
    bytes_per_second: float = 0.0
    reason: str = ""
    """Why it has failed, or why it tries again: WeightsNotFound, SourceUnreachable ..."""
    message: str = ""
    shape: ModelShape | None = None


class GatewayReport(msgspec.Struct, kw_only=True):
    replicas: list[ReplicaReport] = []
    version: int = WIRE_VERSION


class DeploymentLoad(msgspec.Struct, kw_only=True):
    """What one gateway says of one deployment at GET /internal/v1/load. Latencies are of the latest `window_s`."""

    deployment: str
    namespace: str
    in_flight: int
    """Requests at replicas now."""
    held: int
    """Requests that wait for a replica."""
    queued_tokens: int
    """Prompt tokens at replicas whose first byte is still to come, less what was cached of them."""
    requests: int
    """Requests admitted since the gateway started."""
    idle_s: float
    """Time since the last request ended, or since the gateway knows the deployment; 0 while there is one."""
    ttft_p50_s: float | None = None
    """Streams only, from the choice of a replica to its first byte; None: none in the window."""
    ttft_p90_s: float | None = None
    itl_p50_s: float | None = None
    """Mean time between a stream's events, over each second of it."""
    itl_p90_s: float | None = None
    arrivals_per_s: float | None = None
    """Requests admitted, over the latest 10 s; None: an older gateway."""
    service_s: float | None = None
    """Mean time from a request's sending to a replica to its end there, of the worker where it is longest; None: none
    ended in the window."""


class GatewayLoad(msgspec.Struct, kw_only=True):
    """GET /internal/v1/load."""

    gateway: str
    """Changes with every start of the gateway process."""
    deployments: list[DeploymentLoad] = []
    window_s: float = 30.0
    version: int = WIRE_VERSION


class PeerCount(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One of a gateway's own counts, for other gateways before the same replicas."""

    kind: Literal["replica", "key"]
    where: tuple[str, str, str]
    """Namespace, deployment, and the replica's id or the key's name."""
    in_flight: int = 0
    """Requests at the replica, or of the key."""
    tokens: int = 0
    """Of a replica: prompt tokens whose first byte is still to come. Of a key: output tokens reserved."""
    used: tuple[int, int, int] = (0, 0, 0)
    """Of a key: requests, prompt tokens and output tokens since the gateway started."""
    lately: tuple[int, int, int] | None = None
    """Of a key, in a snapshot: those of them in the last minute."""


class PeerFrame(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One line of GET /internal/v1/peers of a gateway: all its counts, then those that have changed."""

    gateway: str
    """Changes with every start of the gateway process."""
    is_snapshot: bool = False
    counts: list[PeerCount] = []
    version: int = WIRE_VERSION


class ReplicaScore(msgspec.Struct, kw_only=True):
    """What the choice of a replica saw of one of them."""

    replica: str
    in_flight: int
    queued_tokens: int
    cost: float | None = None
    """The cheapest is chosen; None: it was no candidate."""
    cached_tokens: int = 0
    uncached_tokens: int = 0
    is_over_bound: bool = False
    """It is far busier than the mean, and no candidate however warm."""
    index_mode: IndexMode = "FALLBACK"
    index_problem: str = ""
    """Why its cache is not known exactly; empty while it is."""
    excluded: str = ""
    """Why it gets no requests; empty for a candidate."""


class RouteExplanation(msgspec.Struct, kw_only=True):
    """/debug/route of a gateway: where a request would go now."""

    model: str
    deployment: str
    namespace: str
    policy: str
    index_mode: IndexMode
    """Of the chosen replica; FALLBACK where none can take it."""
    prompt_tokens: int
    is_tokenised: bool
    """False: the prompt's length is estimated from its bytes, and nothing of it counts as cached."""
    held: int
    chosen: str = ""
    """Empty: no replica can take it, so it would be held."""
    reason: str = ""
    miss: str = ""
    """Why the chosen replica has no more of the prompt cached; empty if it has all of it."""
    replicas: list[ReplicaScore] = []
    """Candidates by cost, then the others."""
