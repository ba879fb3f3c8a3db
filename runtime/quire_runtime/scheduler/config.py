"""What the scheduler must know of the engine."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Limits of one engine, named as vLLM's.

    max_num_seqs: rows, that is sequences that can run at a time.
    max_num_batched_tokens: query tokens of one step, over all sequences.
    max_model_len: longest sequence, prompt and output together, in tokens.
    num_blocks: blocks of the KV cache, block 0 (never handed out) included.
    max_num_queued_reqs: requests that may wait for their first step; None: any number.
    long_prefill_token_threshold: most tokens of one sequence in one step; 0: only the step's budget limits them.
    finds_shared_prefixes: plans may say what decodes begin with alike.
    mixed_step_tokens: query tokens of a step with prompts and decodes, where few prompts wait (their cached tokens
        count too); 0: as of any step.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    block_size: int
    num_blocks: int
    enable_prefix_caching: bool = True
    max_num_queued_reqs: int | None = None
    long_prefill_token_threshold: int = 0
    finds_shared_prefixes: bool = True
    mixed_step_tokens: int = 0

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "max_model_len", "block_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
