"""From a configuration to the parts of a ready engine, with the seconds each phase took."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from quire_api.errors import UserError
from quire_kernels.batch import AttentionBatch
from quire_kernels.invariance import attention_agrees, products_agree
from quire_runtime.config import EngineConfig
from quire_runtime.engine.kernel_cache import use_kernel_cache
from quire_runtime.engine.progress import StartProgress, Tell
from quire_runtime.engine.source import model_directory
from quire_runtime.execute.kvcache import KVCache
from quire_runtime.execute.memory import MemoryPlan, is_out_of_memory, out_of_memory, plan_memory, remarks, require_room
from quire_runtime.execute.rows import Rows
from quire_runtime.execute.runner import Runner
from quire_runtime.execute.workspace import decode_sums, padded_prompts
from quire_runtime.model.config import ModelConfig
from quire_runtime.model.fingerprint import model_revision
from quire_runtime.model.loader import load_weights
from quire_runtime.model.registry import Model, build_model, weights_nbytes

log = logging.getLogger(__name__)


class NoSuchDevice(UserError):
    """The configuration names a device this machine does not have."""


class UnsupportedGPU(UserError):
    """The GPU lacks what the kernels need."""


class NotDeterministic(UserError):
    """A deterministic engine was asked for on a GPU whose kernels' results depend on the batch."""


LEAST_CAPABILITY = (8, 0)
"""Of an NVIDIA GPU: the first with bfloat16 products."""
DEVICE_FILES = Path("/dev")
HIDING = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
"""Variables that name the GPUs a process may use."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in memory and all that executes it."""

    runner: Runner
    model_config: ModelConfig
    model_revision: str
    memory: MemoryPlan
    depth: int
    startup_s: dict[str, float]
    num_parameters: int
    """Weights in memory; tied ones count once."""


def load(config: EngineConfig, tell: Tell | None = None) -> Loaded:
    """Fetch the model where it is remote, load it, divide the memory, and make ready what the first step needs.

    tell: hears how far it is.

    Raises:
        UserError: the model is missing, malformed, unsupported or too large; the device does not exist or is too old.
    """
    progress = StartProgress(tell) if tell is not None else StartProgress()
    with progress.phase("fetch"):
        directory = model_directory(config)
        facts = ModelConfig.from_directory(directory)
        revision = model_revision(directory)
    device = pick_device(config)
    use_kernel_cache(config.kernel_cache, device)
    if device.type == "cuda":
        from quire_kernels.together import compiler_key

        compiler_key()
    dtype = pick_dtype(config, facts, device)
    try:
        return _load(config, directory, facts, revision, device, dtype, progress)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(config, device, progress.current, error) from error


def _load(
    config: EngineConfig,
    directory: Path,
    facts: ModelConfig,
    revision: str,
    device: torch.device,
    dtype: torch.dtype,
    progress: StartProgress,
) -> Loaded:
    depth = 2 if (device.type == "cuda" if config.async_scheduling is None else config.async_scheduling) else 1
    with progress.phase("weights"):
        window = None if isinstance(config.max_model_len, str) else config.max_model_len
        require_room(config, device, weights_nbytes(facts, dtype))
        model = build_model(facts, dtype, device, window, config.deterministic)
        weights = load_weights(model, directory, progress.read, load_format=config.load_format, seed=config.seed).nbytes
    if config.deterministic and device.type == "cuda":
        with progress.phase("kernels"), torch.inference_mode():
            model.learn_products(config.max_num_batched_tokens, config.max_num_seqs)
            torch.cuda.empty_cache()
    with progress.phase("memory"):
        workspace = measure_workspace(config, facts, model, dtype, device, progress)
        memory = plan_memory(config, facts, dtype, device, weights, workspace)
        log.info("%s", memory.table())
        for remark in remarks(config, facts, memory):
            log.warning("%s", remark)
        kv = KVCache(
            facts.num_layers, memory.num_blocks, facts.num_kv_heads, config.block_size, facts.head_dim, dtype, device
        )
        tables = Rows(config.max_num_seqs, memory.max_model_len, config.block_size, device)
        graphs = not config.enforce_eager
        runner = Runner(model, kv, tables, facts.vocab_size, device, depth, graphs, config.deterministic)
    with progress.phase("kernels"):
        runner.warm_up()
    with progress.phase("graphs"):
        runner.capture_graphs()
    with progress.phase("kernels"):
        if config.deterministic and device.type == "cuda":
            require_invariance(model)
    num_parameters = sum(tensor.numel() for tensor in model.weights.tensors)
    return Loaded(runner, facts, revision, memory, depth, progress.seconds, num_parameters)


@torch.inference_mode()
def require_invariance(model: Model) -> None:
    """Compute some products and attention in two batches each, and compare them.

    Raises:
        NotDeterministic: on this GPU a kernel of the deterministic model gives a row other bits in another batch.
    """
    facts, device = model.config, model.device
    heads = facts.num_heads, facts.num_kv_heads, facts.head_dim
    wrong = [
        *("matrix products" for part in model.products() if not products_agree(*part)),
        *("attention" for w in set(facts.sliding_window) if not attention_agrees(*heads, model.dtype, w, device)),
    ]
    if wrong:
        raise NotDeterministic(
            f"deterministic cannot hold on {torch.cuda.get_device_name(device)}: its {wrong[0]} differ in the last "
            "bits between a row alone and in a batch. Serve without it, use device cpu, or an NVIDIA GPU of compute "
            "capability 9.0."
        )


def pick_device(config: EngineConfig) -> torch.device:
    """Where the engine runs: `auto` is a GPU that torch can use, else the CPU.

    Raises:
        NoSuchDevice: a GPU was asked for, or is there for this process, and torch can use none.
        UnsupportedGPU: the GPU is older than LEAST_CAPABILITY.
    """
    if config.device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        if config.device == "cuda":
            raise NoSuchDevice(
                f"device is cuda, but torch can use no GPU here: {_why_no_cuda()} "
                "Use device cpu or auto, or mend the driver."
            )
        if seen := _seen_gpus():
            if torch.version.cuda or torch.version.hip:
                raise NoSuchDevice(
                    f"This machine has a GPU ({', '.join(seen)}), but torch can use none: {_why_no_cuda()} "
                    "Mend the driver, or serve on the CPU with device cpu."
                )
            log.warning("%s: not used, because this torch is built for CPUs only", ", ".join(seen))
        return torch.device("cpu")
    device = torch.device("cuda", torch.cuda.current_device())
    if torch.version.hip is None and (capability := torch.cuda.get_device_capability(device)) < LEAST_CAPABILITY:
        raise UnsupportedGPU(
            f"{torch.cuda.get_device_name(device)} has compute capability {capability[0]}.{capability[1]}, but the "
            f"kernels need {LEAST_CAPABILITY[0]}.{LEAST_CAPABILITY[1]} (A100, RTX 30 or newer). Use another GPU, or "
            "device cpu."
        )
    return device


def _seen_gpus() -> list[str]:
    """Device files of the GPUs that this process may use; none where a variable hides them."""
    if any(os.environ.get(name) in ("", "-1") for name in HIDING):
        return []
    return sorted(str(path) for pattern in ("nvidia[0-9]*", "kfd") for path in DEVICE_FILES.glob(pattern))


def _why_no_cuda() -> str:
    """torch's own reason in one sentence: no driver, one that is too old, no GPU, or no CUDA in this build."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return f"{str(error).splitlines()[0].split('. ')[0].rstrip('.')}."
    return "it sees no GPU."


def pick_dtype(config: EngineConfig, facts: ModelConfig, device: torch.device) -> torch.dtype:
    """`auto` follows the checkpoint, but float32 runs as bfloat16 on a GPU and float16 as float32 on a CPU."""
    name = config.dtype
    if name == "auto":
        unusual = {("cuda", "float32"): "bfloat16", ("cpu", "float16"): "float32"}
        name = unusual.get((device.type, facts.dtype), facts.dtype)
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


@torch.inference_mode()
def measure_workspace(
    config: EngineConfig,
    facts: ModelConfig,
    model: Model,
    dtype: torch.dtype,
    device: torch.device,
    progress: StartProgress,
) -> int:
    """Bytes of activations at the largest step: measured on a GPU by running one, estimated on a CPU.

    What that one has not, of padded prompts and of decodes beside it, is counted.
    """
    tokens, draws = config.max_num_batched_tokens, min(config.max_num_seqs, config.max_num_batched_tokens)
    logits = 3 * draws * facts.vocab_size * 4
    if device.type != "cuda":
        widest = 2 * facts.hidden_size + facts.qkv_size + 3 * facts.intermediate_size
        return tokens * widest * dtype.itemsize + logits
    from quire_kernels.together import compiled_together

    window = facts.max_position_embeddings if isinstance(config.max_model_len, str) else config.max_model_len
    lengths = [window] * (tokens // window) + ([tokens % window] if tokens % window else [])
    positions = torch.cat([torch.arange(length, device=device) for length in lengths])
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    batch = AttentionBatch(
        positions=positions,
        slots=torch.zeros_like(positions),
        query_starts=torch.tensor(starts, dtype=torch.int32, device=device),
        seq_lens=torch.tensor(lengths, dtype=torch.int32, device=device),
        block_tables=torch.zeros(len(lengths), -(-window // config.block_size), dtype=torch.int32, device=device),
        num_decodes=0,
        query_starts_cpu=starts,
        seq_lens_cpu=lengths,
        block_size=config.block_size,
    )
    kv = KVCache(facts.num_layers, 1, facts.num_kv_heads, config.block_size, facts.head_dim, dtype, device)
    with progress.phase("kernels"), compiled_together(device):
        model.forward(torch.zeros_like(positions), kv.layers, batch)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    hidden = model.forward(torch.zeros_like(positions), kv.layers, batch)
    model.compute_logits(hidden[:draws])
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    torch.cuda.empty_cache()
    if config.deterministic:
        graphs = not config.enforce_eager
        return peak + logits + decode_sums(facts, config.max_num_seqs, window, config.block_size, graphs=graphs)
    return max(peak, padded_prompts(facts, dtype, tokens)) + logits
