"""What the inputs of a step are."""

from typing import NamedTuple

from torch import Tensor


class DecodeInputs(NamedTuple):
    """token_ids, positions, slots int64 [n]; seq_lens int32 [n]; block_tables int32 [n, columns], whose entries behind
    a sequence's last block mean nothing."""

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    seq_lens: Tensor
    block_tables: Tensor


class MixedInputs(NamedTuple):
    """token_ids, positions, slots int64 [T]; of n sequences int32: seq_lens [n], decode_lens [n] (0 where more than one
    token is asked), prefill_starts [n + 1] (no tokens for decodes), block_tables [n, columns], last int64 [n]."""

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    seq_lens: Tensor
    decode_lens: Tensor
    prefill_starts: Tensor
    block_tables: Tensor
    last: Tensor
