"""Messages between a server process and its engine process: msgspec structs, as msgpack over engine.channel.

Arrays travel as bytes of little-endian fixed-width integers: a step of 1,024 tokens is one message of a few buffers.
"""

import msgspec

from quire_api.sampling import SamplingParams
from quire_api.warming import HotPrefix

STEP_SIZE_BOUNDS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Upper bounds of EngineStats.step_sizes, in tokens; as vLLM's."""


class AddRequest(msgspec.Struct, tag=True, array_like=True, gc=False):
    """handle is unique per client; token_ids: uint32 bytes; sent_s: the machine's monotonic clock, 0 if not said.

    outputs: of a request that another engine began, the output of each choice so far (uint32 bytes); ended: choices
    that have ended there.
    """

    handle: int
    token_ids: bytes
    params: SamplingParams
    request_id: str
    priority: int = 0
    cache_salt: str = ""
    sent_s: float = 0.0
    outputs: list[bytes] = []
    ended: list[int] = []
    is_warming: bool = False


class AbortRequests(msgspec.Struct, tag=True, array_like=True, gc=False):
    handles: list[int]


class Drain(msgspec.Struct, tag=True, array_like=True, gc=False):
    """Take no new requests; finish those that run."""


class WatchKV(msgspec.Struct, tag=True, array_like=True, gc=False):
    """Send a KVFrames snapshot that bears `number`, and from there on every change of the prefix index; 0: stop."""

    number: int


class TellHot(msgspec.Struct, tag=True, array_like=True, gc=False):
    """Send the hottest prefixes, in a HotList that bears `number`; bounds as those of kv.hot.hottest."""

    number: int
    max_prefixes: int
    max_tokens: int


ToEngine = AddRequest | AbortRequests | Drain | WatchKV | TellHot


class EngineLoading(msgspec.Struct, tag=True, array_like=True, gc=False):
    """Word of an engine that starts: a phase of EngineReady.startup_s, and percent of it where that can be told."""

    phase: str
    percent: int | None = None


class EngineReady(msgspec.Struct, tag=True, array_like=True, gc=False):
    """Of an engine that has loaded its model, before all others but EngineLoading."""

    model_revision: str
    block_size: int
    num_blocks: int
    max_model_len: int
    max_num_seqs: int
    epoch: str
    startup_s: dict[str, float]
    """Seconds by phase: import, fetch, weights, memory, kernels, graphs; and total."""
    architecture: str = ""
    """As the checkpoint names it."""
    num_parameters: int = 0
    """Weights in memory; tied ones count once."""


class EngineFailed(msgspec.Struct, tag=True, array_like=True, gc=False):
    """The engine could not start or died; `message` is meant for the user."""

    message: str
    is_user_error: bool
    reason: str = ""
    """In a word, for machines: the name of the error's class, or faults.Fault's."""


class RequestRejected(msgspec.Struct, tag=True, array_like=True, gc=False):
    """`code`: queue_full | context_length_exceeded | kv_cache_too_small | draining | invalid."""

    handle: int
    code: str
    message: str


class TokenLogprobs(msgspec.Struct, array_like=True, gc=False):
    """One position: the chosen (or prompt) token first, with its rank (1 = likeliest), then the likeliest ones."""

    token_ids: list[int]
    logprobs: list[float]
    rank: int


class PromptLogprobs(msgspec.Struct, array_like=True, gc=False):
    """Of prompt positions start .. start + len - 1; position 0 has none and is never sent."""

    handle: int
    start: int
    positions: list[TokenLogprobs]


class EngineStats(msgspec.Struct, array_like=True, gc=False):
    """Gauges as of this step, and counters since the engine started."""

    num_running: int = 0
    num_waiting: int = 0
    kv_blocks_total: int = 0
    kv_blocks_used: int = 0
    kv_waste_ratio: float = 0.0
    num_preemptions: int = 0
    prefix_queries_tokens: int = 0
    prefix_hits_tokens: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    step_tokens: int = 0
    python_seconds: float = 0.0
    num_corrupted: int = 0
    """Requests ended because the model computed a value that is not a number for them."""
    step_sizes: list[int] = []
    """Steps by tokens computed: up to each of STEP_SIZE_BOUNDS and above the one before it, then those above all."""


class RequestTimes(msgspec.Struct, array_like=True, gc=False):
    """What a request's time before its first token went to. Seconds.

    queue_s: sent until first scheduled. prefill_s: first scheduled until its first token was read.
    """

    handle: int
    queue_s: float
    prefill_s: float


class Step(msgspec.Struct, tag=True, array_like=True, gc=False):
    """One engine step, one message.

    The arrays are parallel: int64 handles, int32 choices, int32 tokens (-1: ended without one), uint8 finish
    (scheduler.request.FinishReason), int32 cached (prompt tokens found in the prefix cache; -1 but on a choice's first
    output). `logprobs` has an entry per array position (None where not asked), or is empty.
    """

    sequence: int
    handles: bytes
    choices: bytes
    tokens: bytes
    finish: bytes
    cached: bytes
    logprobs: list[TokenLogprobs | None]
    prompt_logprobs: list[PromptLogprobs]
    stats: EngineStats
    errors: dict[int, str] = {}
    """Requests ended by FinishReason.ERROR and why."""
    times: list[RequestTimes] = []
    """Of requests whose first token came with this step."""


class Heartbeat(msgspec.Struct, tag=True, array_like=True, gc=False):
    """Sent once a second by the loop itself while idle; with Step the proof that the loop turns."""

    monotonic_s: float
    stats: EngineStats


class KVFrames(msgspec.Struct, tag=True, array_like=True, gc=False):
    """Whole frames of quire_api.kv_events, for gateways: the snapshot asked for by `number`, or changes (0).

    is_pulse: the process lives; of its loop this says nothing.
    """

    frames: bytes
    number: int = 0
    is_pulse: bool = False


class HotList(msgspec.Struct, tag=True, array_like=True, gc=False):
    """The answer to the TellHot of this number."""

    number: int
    prefixes: list[HotPrefix]


FromEngine = EngineLoading | EngineReady | EngineFailed | RequestRejected | Step | Heartbeat | KVFrames | HotList
