"""From a file of rwkv.cpp to a folder that loads like any other: configuration, safetensors and a tokenizer.

The file holds no tokenizer. Models of 256 tokens read bytes, which needs none; others take the ``tokenizer.json`` that
lies beside the file.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tapwb.core.errors import CorruptWeights, UnsupportedModel
from tapwb.models.quiet import without_progress_bars
from tapwb.models.tokenizer_bytes import byte_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

N_BYTES = 256


def convert_rwkv(path: Path, folder: Path) -> None:
    """Write the model of a file, in fp32.

    Args:
        path: File of rwkv.cpp.
        folder: Existing folder to fill.

    Raises:
        CorruptWeights: If the file is damaged, or the tokenizer beside it cannot be read.
        UnsupportedModel: If the model cannot be run, or no tokenizer fits it.
    """
    from tapwb.models.rwkv.load import load_rwkv

    model = load_rwkv(path)
    tokenizer = rwkv_tokenizer(path, model.config.vocab_size)
    with without_progress_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def rwkv_tokenizer(path: Path, vocab_size: int) -> "PreTrainedTokenizerFast":
    """The tokenizer of a model.

    Args:
        path: File of the model; ``tokenizer.json`` is looked for in its folder.
        vocab_size: Tokens of the model.

    Raises:
        CorruptWeights: If that file is no tokenizer.
        UnsupportedModel: If there is none, or one with tokens that the model does not have.
    """
    from transformers import PreTrainedTokenizerFast

    beside = path.with_name("tokenizer.json")
    if not beside.is_file():
        if vocab_size == N_BYTES:
            return plain_byte_tokenizer()
        raise UnsupportedModel(
            f"{path.name} has {vocab_size} tokens and no tokenizer: files of rwkv.cpp hold none. Put the "
            "tokenizer.json of its checkpoint beside the file, or give a model of 256 tokens, which are bytes. The "
            "text vocabulary of the World models (rwkv_vocab_v20230424.txt) cannot be read."
        )
    try:
        json.loads(beside.read_text(encoding="utf-8"))["model"]["vocab"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptWeights(f"{beside} is no tokenizer with a vocabulary. Fetch it again.") from error
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(beside), clean_up_tokenization_spaces=False)
    if len(tokenizer) > vocab_size:
        raise UnsupportedModel(
            f"{beside} has {len(tokenizer)} tokens, {path.name} has {vocab_size}. Put the tokenizer of this model "
            "there."
        )
    return tokenizer


def plain_byte_tokenizer() -> "PreTrainedTokenizerFast":
    """One token per byte and nothing else: a text has no end token, and an answer ends at its limit."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = byte_tokenizer().backend_tokenizer.get_vocab(with_added_tokens=False)
    backend = Tokenizer(models.BPE(vocab=letters, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)
