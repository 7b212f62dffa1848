"""A tokenizer that needs no training data: one token per UTF-8 byte, and one special token.

Token ``b`` is byte ``b``; token 256 begins, ends and pads a text. Any text in any script round-trips, which is all the
random test models need.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKEN = "<|end|>"
SPECIAL_ID = 256
VOCAB_SIZE = 257


def byte_tokenizer() -> "PreTrainedTokenizerFast":
    """A tokenizer with 257 tokens; begin, end and padding share the last one."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(vocab={letter: byte for byte, letter in _byte_letters().items()}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(SPECIAL_TOKEN, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=SPECIAL_TOKEN,
        eos_token=SPECIAL_TOKEN,
        pad_token=SPECIAL_TOKEN,
        clean_up_tokenization_spaces=False,
    )


def _byte_letters() -> dict[int, str]:
    """The printable letter that byte-level tokenizers write for each byte (Radford 2019, GPT-2's encoder.py)."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = {byte: chr(byte) for byte in visible}
    hidden = [byte for byte in range(256) if byte not in letters]
    return letters | {byte: chr(256 + index) for index, byte in enumerate(hidden)}
