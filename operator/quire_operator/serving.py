"""From the spec to the flags of `quire serve`: the same in a pod and in a process of this machine."""

from quire_api.v1alpha1 import LLMDeployment
from quire_api.v1alpha1_values import is_fraction

INTERNAL_KEY = "QUIRE_INTERNAL_KEY"
TERMINATION_LOG = "QUIRE_TERMINATION_LOG"
"""Variable with the file into which an engine writes {"reason", "message"} as JSON when it ends for a known reason."""


def serve_flags(deployment: LLMDeployment, location: str, host: str, port: int, shutdown_timeout_s: float) -> list[str]:
    """What follows `quire serve`; `extraArgs` come last, so that they win."""
    spec = deployment.spec
    engine, memory = spec.engine, spec.engine.kv_cache.memory
    argv = [location, "--host", host, "--port", str(port)]
    argv += ["--served-model-name", *deployment.served_names]
    argv += ["--disable-access-log", "--shutdown-timeout", f"{shutdown_timeout_s:g}"]
    # Where GPUs were asked for, an engine that cannot use them must not serve from its CPU.
    device = "cuda" if engine.device == "auto" and spec.resources.gpus else engine.device
    argv += ["--device", device, "--dtype", engine.dtype, "--block-size", str(engine.kv_cache.block_size)]
    if spec.model.revision is not None and location.startswith("hf://"):
        argv += ["--revision", spec.model.revision]
    if engine.max_model_len is not None:
        argv += ["--max-model-len", str(engine.max_model_len)]
    if memory is not None:
        argv += ["--gpu-memory-utilization" if is_fraction(memory) else "--kv-cache-memory", memory]
    return argv + list(engine.extra_args)
