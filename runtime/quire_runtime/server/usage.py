"""Token counts of an answer."""

from quire_api.openai_responses import PromptTokensDetails, Usage
from quire_runtime.server.generation import Generation


def usage_of(generation: Generation, *, without_output: bool = False) -> Usage:
    """without_output: the generated tokens were thrown away."""
    prompt, completion = generation.prompt_tokens, 0 if without_output else generation.completion_tokens
    return Usage(prompt, completion, prompt + completion, PromptTokensDetails(generation.cached_tokens))
