"""llama.cpp's batched decoding: so many sequences at once, a new prompt as soon as one has ended. Greedy.

`PYTHON -m tests.benchmarks.llama_way MODEL.gguf PROMPTS.json TOKENS SEQUENCES`, by a Python that has llama-cpp-python;
prints JSON. Prompts are texts that were rendered with the model's template.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from pathlib import Path

import llama_cpp as llama
import numpy as np

CONTEXT = 1024  # tokens of a sequence at most
BATCH = 2048


class Batched:
    def __init__(self, gguf: str, sequences: int) -> None:
        llama.llama_backend_init()
        self.model = llama.llama_model_load_from_file(gguf.encode(), llama.llama_model_default_params())
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = CONTEXT * sequences, BATCH, 512
        params.n_seq_max, params.n_threads, params.n_threads_batch = sequences, 2, 2
        self.context = llama.llama_init_from_model(self.model, params)
        self.vocabulary = llama.llama_model_get_vocab(self.model)
        self.size = llama.llama_vocab_n_tokens(self.vocabulary)
        self.memory = llama.llama_get_memory(self.context)
        self.batch = llama.llama_batch_init(BATCH, 0, 1)
        self.sequences = sequences

    def tokens(self, text: str) -> list[int]:
        data = text.encode()
        found = (ctypes.c_int32 * (len(data) + 8))()
        count = llama.llama_tokenize(self.vocabulary, data, len(data), found, len(found), False, True)
        return list(found[:count])

    def text(self, tokens: list[int]) -> bytes:
        piece, said = ctypes.create_string_buffer(256), b""
        for token in tokens:
            said += piece.raw[: llama.llama_token_to_piece(self.vocabulary, token, piece, 256, 0, False)]
        return said

    def answer(self, prompts: list[str], most: int) -> tuple[int, int]:
        """Return the tokens that were read and made."""
        waiting = [self.tokens(prompt) for prompt in prompts][::-1]
        read = sum(map(len, waiting))
        free, running, made = list(range(self.sequences)), {}, 0
        while waiting or running:
            self.batch.n_tokens, asked = 0, {}
            for sequence, one in running.items():
                asked[sequence] = self._add(one["made"][-1], one["place"], sequence, wanted=True)
                one["place"] += 1
            while waiting and free and self.batch.n_tokens + len(waiting[-1]) <= BATCH:
                prompt, sequence = waiting.pop(), free.pop()
                for place, token in enumerate(prompt):
                    asked[sequence] = self._add(token, place, sequence, wanted=place == len(prompt) - 1)
                running[sequence] = {"place": len(prompt), "made": []}
            assert llama.llama_decode(self.context, self.batch) == 0
            for sequence, row in asked.items():
                logits = np.ctypeslib.as_array(llama.llama_get_logits_ith(self.context, row), (self.size,))
                token, one = int(logits.argmax()), running[sequence]
                one["made"].append(token)
                made += 1
                if llama.llama_vocab_is_eog(self.vocabulary, token) or len(one["made"]) == most:
                    self.text(one["made"])
                    llama.llama_memory_seq_rm(self.memory, sequence, -1, -1)
                    del running[sequence]
                    free.append(sequence)
        return read, made

    def _add(self, token: int, place: int, sequence: int, *, wanted: bool) -> int:
        batch, row = self.batch, self.batch.n_tokens
        batch.token[row], batch.pos[row], batch.n_seq_id[row] = token, place, 1
        batch.seq_id[row][0], batch.logits[row] = sequence, wanted
        batch.n_tokens += 1
        return row


def main() -> None:
    gguf, prompts, most, sequences = sys.argv[1:]
    engine = Batched(gguf, int(sequences))
    texts = json.loads(Path(prompts).read_text())
    engine.answer(texts[:2], 4)
    cpu, started = time.process_time(), time.perf_counter()
    read, made = engine.answer(texts, int(most))
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    print(json.dumps({"read": read, "made": made, "seconds": seconds, "cpu_s": cpu}))


if __name__ == "__main__":
    main()
