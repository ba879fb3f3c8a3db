"""A launched step: its results travel to the host on a stream of their own while the next step runs."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quire_runtime.engine.messages import TokenLogprobs
from quire_runtime.execute.logprobs import PositionLogprobs, to_messages


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step computed.

    tokens: int32 [n], one a batch slot; -1 where none was drawn, sampler.POISONED where the logits held a NaN.
    logprobs: by batch slot. prompt_logprobs: (request's handle, first position, one message a position).
    """

    tokens: NDArray[np.int32]
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    prompt_logprobs: list[tuple[int, int, list[TokenLogprobs]]] = field(default_factory=list)


class OutputCopy:
    """Copies tensors to the host behind the work that makes them, without holding that work up."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def start(self, tensors: list[Tensor]) -> "Copied":
        if self._stream is None:
            return Copied(tensors, tensors, None)
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        # Waited for actively: in a virtual machine a thread that sleeps until the interrupt is 0.1 to 0.5 ms late.
        event = torch.cuda.Event()
        with torch.cuda.stream(self._stream):
            copies = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True) for t in tensors]
            event.record(self._stream)
        return Copied(tensors, copies, event)


@dataclass(frozen=True, slots=True)
class Copied:
    """`sources` are held so that their memory is not handed out while the copy runs."""

    sources: list[Tensor]
    copies: list[Tensor]
    event: torch.cuda.Event | None

    def wait(self) -> list[NDArray[Any]]:
        if self.event is not None:
            self.event.synchronize()
        return [tensor.numpy() for tensor in self.copies]


@dataclass(frozen=True, slots=True)
class PendingStep:
    """A step that has been launched; `wait()` blocks until its tokens are on the host.

    draw_slots: batch slots that draw, in the order of the drawn tokens.
    prompt: (request's handle, first position, values) of each chunk of prompt logprobs.
    """

    num_slots: int
    draw_slots: NDArray[np.intp]
    logprobs: PositionLogprobs | None
    prompt: list[tuple[int, int, PositionLogprobs]]
    copied: Copied

    def wait(self) -> StepResult:
        arrays = self.copied.wait()
        tokens = np.full(self.num_slots, -1, np.int32)
        tokens[self.draw_slots] = arrays[0]
        if len(arrays) == 1:
            return StepResult(tokens)
        rest = iter(arrays[1:])
        drawn: dict[int, TokenLogprobs] = {}
        if self.logprobs is not None:
            messages = to_messages(next(rest), next(rest), next(rest), self.logprobs.counts)
            drawn = dict(zip(self.draw_slots[self.logprobs.keys].tolist(), messages, strict=True))
        prompt = [
            (handle, start, to_messages(next(rest), next(rest), next(rest), chunk.counts))
            for handle, start, chunk in self.prompt
        ]
        return StepResult(tokens, drawn, prompt)
