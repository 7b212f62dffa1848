"""Build the tokenizer a GGUF file describes.

Byte-level BPE vocabularies are built here in well under a second; transformers' own route takes 5 to 25 s and, for
the ``smollm`` pre-tokenizer, forgets that digits stand alone: ``"x  1"`` then splits its two spaces differently from
the way the model was trained. Every other kind of vocabulary goes through transformers.
"""

from pathlib import Path
from typing import Any

from tapwb.core.errors import CorruptWeights, UnsupportedModel
from tapwb.models.gguf_file import GgufFile

_CONTROL, _USER_DEFINED = 3, 4
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def save_tokenizer(gguf_file: GgufFile, folder: Path) -> None:
    """Write ``tokenizer.json`` and its companions into ``folder``.

    Raises:
        CorruptWeights: If the file holds no vocabulary, or a special token outside it.
        UnsupportedModel: If neither this module nor transformers knows the kind of vocabulary.
    """
    metadata = gguf_file.metadata
    if "tokenizer.ggml.tokens" not in metadata:
        raise CorruptWeights(f"{gguf_file.path.name} holds no vocabulary. Give a GGUF file made with its tokenizer.")
    if metadata.get("tokenizer.ggml.model") == "gpt2" and metadata.get("tokenizer.ggml.pre") in _SPLITTERS:
        tokenizer = _byte_level_bpe(gguf_file)
    else:
        tokenizer = _through_transformers(gguf_file)
    tokenizer.save_pretrained(folder)


def _byte_level_bpe(gguf_file: GgufFile) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    metadata = gguf_file.metadata
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = _SPLITTERS[metadata["tokenizer.ggml.pre"]]()
    backend.decoder = decoders.ByteLevel()
    kinds = dict(zip(tokens, metadata.get("tokenizer.ggml.token_type", ()), strict=False))
    backend.add_special_tokens([AddedToken(t, normalized=False) for t, kind in kinds.items() if kind == _CONTROL])
    backend.add_tokens([AddedToken(t, normalized=False) for t, kind in kinds.items() if kind == _USER_DEFINED])
    special = {}
    for name, key in _SPECIAL.items():
        index = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if index is None:
            continue
        if index >= len(tokens):
            raise CorruptWeights(
                f"{gguf_file.path.name} names token {index} as its {name} token; it has {len(tokens)} tokens. "
                "Fetch the file again."
            )
        special[f"{name}_token"] = tokens[index]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=metadata.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        **special,
    )


def _through_transformers(gguf_file: GgufFile) -> Any:
    from transformers import AutoTokenizer

    path = gguf_file.path
    try:
        return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except (ValueError, KeyError) as error:
        raise UnsupportedModel(
            f"the tokenizer of {path.name} ({gguf_file.metadata.get('tokenizer.ggml.model')!r}) cannot be rebuilt: "
            f"{error}. Load the model from its original Hugging Face folder instead."
        ) from error


def _digits_then_bytes() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _bytes_only() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel(add_prefix_space=False)


# llama.cpp's names of pre-tokenizers (llama-vocab.cpp) whose splitting is one of these two.
_SPLITTERS = {"smollm": _digits_then_bytes, "gpt-2": _bytes_only}
