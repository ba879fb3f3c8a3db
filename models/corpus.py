"""The training text: a tokenizer made for it, and documents packed into rows of token ids."""

import math
import multiprocessing
import os
import random
import re

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from models.conversations import END_OF_TEXT, TURN_END, TURN_START, training_document

SPECIALS = (END_OF_TEXT, TURN_START, TURN_END)
ROW_LENGTHS = (256, 1024, 2048)
DOCUMENTS_PER_CHUNK = 2000


def train_tokenizer(seed: int, vocabulary: int, documents: int) -> Tokenizer:
    """Byte-level BPE in which every digit is a token of its own, so that sums can be learned digit by digit."""
    rng = random.Random(f"tokenizer {seed}")
    special = re.compile("|".join(map(re.escape, SPECIALS)))
    texts = (special.sub("", text) for _ in range(documents) for text, _ in training_document(rng))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = [AddedToken(text, special=True, normalized=False) for text in SPECIALS]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode_chunk(job: tuple[str, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids, what is learned of them, and document lengths. `job`: serialized tokenizer, seed, chunk number."""
    serialized, seed, chunk = job
    tokenizer = Tokenizer.from_str(serialized)
    rng = random.Random(f"documents {seed} {chunk}")
    documents = [training_document(rng) for _ in range(DOCUMENTS_PER_CHUNK)]
    encoded = iter(tokenizer.encode_batch([text for document in documents for text, _ in document]))
    ids: list[int] = []
    learned: list[bool] = []
    lengths = []
    for document in documents:
        before = len(ids)
        for _, is_learned in document:
            piece = next(encoded).ids
            ids += piece
            learned += [is_learned] * len(piece)
        lengths.append(len(ids) - before)
    return np.array(ids, np.int16), np.array(learned, bool), np.array(lengths)


class Rows:
    """Documents packed into rows of each length in `ROW_LENGTHS`; every row begins with a document."""

    def __init__(self, tokenizer: Tokenizer, seed: int, documents: int, device: str) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        chunks = math.ceil(documents / DOCUMENTS_PER_CHUNK)
        jobs = [(tokenizer.to_str(), seed, chunk) for chunk in range(chunks)]
        with multiprocessing.get_context("fork").Pool(min(len(os.sched_getaffinity(0)), 16, chunks)) as pool:
            encoded = pool.map(encode_chunk, jobs, chunksize=1)
        ids, learned, lengths = (np.concatenate(parts) for parts in zip(*encoded, strict=True))
        self.tokens = len(ids)
        ends = np.cumsum(lengths)
        shares = np.array_split(np.arange(len(lengths)), len(ROW_LENGTHS))
        self.rows: dict[int, torch.Tensor] = {}
        self.learned: dict[int, torch.Tensor] = {}
        for length, share in zip(ROW_LENGTHS, shares, strict=True):
            starts = []
            used = length + 1
            for document in share:
                if used >= length + 1:
                    starts.append(ends[document] - lengths[document])
                    used = 0
                used += lengths[document]
            starts = np.array([start for start in starts if start + length + 1 <= len(ids)])
            window = starts[:, None] + np.arange(length + 1)
            self.rows[length] = torch.from_numpy(ids[window]).to(device)
            self.learned[length] = torch.from_numpy(learned[window]).to(device)

    def batch(self, length: int, rows: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Random rows: ids int64 [rows, length + 1] and what is learned of them, bool, same shape."""
        picked = torch.randint(len(self.rows[length]), (rows,), generator=generator).to(self.rows[length].device)
        return self.rows[length][picked].long(), self.learned[length][picked]
