"""The tokenizer that a GGUF file describes, as a Hugging Face fast tokenizer.

What transformers derives from such a file by itself is wrong for byte-level models whose architecture is llama:
it makes a SentencePiece-like tokenizer. Here each part comes from the file's own fields.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError

from tasks.errors import SourceError
from tasks.records import Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# tokenizer.ggml.token_type, as in gguf.TokenType.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5


class TokenizerFields(Record):
    """The fields of a GGUF file that make its tokenizer."""

    model: str = Field(description="tokenizer.ggml.model: the algorithm; gpt2 means byte-level BPE.")
    pre: str = Field(description="tokenizer.ggml.pre: how text is split before BPE.")
    tokens: tuple[str, ...] = Field(min_length=1, description="The vocabulary, by id.")
    token_types: tuple[int, ...] = Field(description="The type of each token.")
    merges: tuple[str, ...] = Field(description="The merges, best first: two tokens with a space between.")
    bos: int | None = None
    eos: int | None = None
    eot: int | None = Field(None, description="Ends a turn, where that is another token than eos.")
    unk: int | None = None
    pad: int | None = None
    add_bos: bool = False
    add_eos: bool = False
    chat_template: str | None = None
    context_length: int | None = Field(None, ge=1, description="The longest input, in tokens.")

    @property
    def stops(self) -> list[int]:
        """The ids that end an answer: eos, and eot where it is another one."""
        return list(dict.fromkeys(token for token in (self.eos, self.eot) if token is not None))


def read_tokenizer_fields(reader: Any) -> TokenizerFields:
    """Return the tokenizer's fields from an open `gguf.GGUFReader`.

    Raises:
        SourceError: A field that no tokenizer can do without is missing, or has the wrong type.
    """
    architecture = read_field(reader, "general.architecture")
    names = {
        "model": "tokenizer.ggml.model",
        "pre": "tokenizer.ggml.pre",
        "tokens": "tokenizer.ggml.tokens",
        "token_types": "tokenizer.ggml.token_type",
        "merges": "tokenizer.ggml.merges",
        "bos": "tokenizer.ggml.bos_token_id",
        "eos": "tokenizer.ggml.eos_token_id",
        "eot": "tokenizer.ggml.eot_token_id",
        "unk": "tokenizer.ggml.unknown_token_id",
        "pad": "tokenizer.ggml.padding_token_id",
        "add_bos": "tokenizer.ggml.add_bos_token",
        "add_eos": "tokenizer.ggml.add_eos_token",
        "chat_template": "tokenizer.chat_template",
        "context_length": f"{architecture}.context_length",
    }
    found = {field: read_field(reader, name) for field, name in names.items() if name in reader.fields}
    _require_byte_level(found.get("model"))
    try:
        return TokenizerFields.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        name = names[str(first["loc"][0])]
        raise SourceError(f"the GGUF file's field {name} cannot be used: {first['msg']}") from error


def read_field(reader: Any, name: str) -> Any:
    """Return a field's value, or None where the file has no such field.

    Raises:
        SourceError: A text in it is not UTF-8.
    """
    field = reader.get_field(name)
    try:
        return None if field is None else field.contents()
    except UnicodeDecodeError as error:
        raise SourceError(f"the GGUF file is damaged: its field {name} is not UTF-8 ({error})") from error


def build_tokenizer(fields: TokenizerFields) -> PreTrainedTokenizerFast:
    """Return the tokenizer that the fields describe.

    Ids agree with llama.cpp's; as there, characters that the vocabulary has no bytes for are left out.

    Raises:
        SourceError: The algorithm or the pre-tokenizer is one that is not proven here, or the fields contradict
            each other.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors
    from transformers import PreTrainedTokenizerFast

    _require_byte_level(fields.model)
    _require_consistent(fields)
    vocabulary = {token: index for index, token in enumerate(fields.tokens)}
    try:
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=_split_merges(fields.merges), fuse_unk=False))
    except Exception as error:  # tokenizers raises nothing narrower
        raise SourceError(f"the GGUF file's tokenizer.ggml.merges do not fit its tokens: {error}") from error
    tokenizer.pre_tokenizer = _pre_tokenizer(fields.pre)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    for token, kind in zip(fields.tokens, fields.token_types, strict=True):
        if kind in (_CONTROL, _UNKNOWN):
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind == _USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, special=False, normalized=False)])
    named = {"bos_token": fields.bos, "eos_token": fields.eos, "unk_token": fields.unk, "pad_token": fields.pad}
    options: dict[str, Any] = {name: fields.tokens[index] for name, index in named.items() if index is not None}
    if fields.context_length is not None:
        options["model_max_length"] = fields.context_length
    if fields.chat_template is not None:
        options["chat_template"] = fields.chat_template
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        add_bos_token=fields.add_bos,
        add_eos_token=fields.add_eos,
        clean_up_tokenization_spaces=False,
        **options,
    )


def _require_byte_level(model: object) -> None:
    if model != "gpt2":
        raise SourceError(
            f"the GGUF file's tokenizer.ggml.model is {model!r}; only 'gpt2' (byte-level BPE) can be turned into a "
            "Hugging Face tokenizer here: take the checkpoint from a hub or a local folder"
        )


def _require_consistent(fields: TokenizerFields) -> None:
    size = len(fields.tokens)
    if len(fields.token_types) != size:
        raise SourceError(f"the GGUF file has {size} tokens and {len(fields.token_types)} token types")
    if len(set(fields.tokens)) != size:
        token, count = Counter(fields.tokens).most_common(1)[0]
        raise SourceError(f"the GGUF file has the token {token!r} {count} times: ids would be ambiguous")
    for name in ("bos", "eos", "eot", "unk", "pad"):
        index = getattr(fields, name)
        if index is not None and not 0 <= index < size:
            raise SourceError(f"the GGUF file's {name} token has the id {index}; there are {size} tokens")
    for flag, name in ((fields.add_bos, "bos"), (fields.add_eos, "eos")):
        if flag and getattr(fields, name) is None:
            raise SourceError(f"the GGUF file says to add a {name} token, and names none")


def _split_merges(merges: tuple[str, ...]) -> list[tuple[str, str]]:
    pairs = []
    for merge in merges:
        left, space, right = merge.partition(" ")
        if not (left and space and right) or " " in right:
            raise SourceError(f"the GGUF file's tokenizer.ggml.merges has {merge!r}, which is not two tokens")
        pairs.append((left, right))
    return pairs


def _pre_tokenizer(name: str) -> Any:
    if name not in _PRE_TOKENIZERS:
        raise SourceError(
            f"the GGUF file's tokenizer.ggml.pre is {name!r}; proven against llama.cpp are only "
            f"{', '.join(_PRE_TOKENIZERS)}: take the checkpoint from a hub or a local folder"
        )
    return _split_by(_PRE_TOKENIZERS[name])


def _split_by(pattern: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


# Only what tests/tasks/download/test_gguf_tokenizer.py compares with llama.cpp's ids. smollm first splits off each
# digit, and then each part by GPT-2's regex; one regex says the same, and stays right in OpenVINO's tokenizer, whose
# second step would look beyond its part (blanks before a digit).
_PRE_TOKENIZERS = {
    "smollm": r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+",
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}
