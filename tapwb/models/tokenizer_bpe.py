"""A small byte-level BPE tokenizer learnt from a text (Sennrich et al. 2016, arXiv:1508.07909, on bytes as in GPT-2).

Every byte has a token, so any text in any script round-trips; pairs that occur often get one of their own.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tapwb.models.tokenizer_bytes import SPECIAL_TOKEN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def train_bpe(documents: Iterable[str], vocab_size: int) -> "PreTrainedTokenizerFast":
    """Learn a tokenizer; the same documents give the same one.

    Args:
        documents: Texts to learn from.
        vocab_size: Number of tokens: one special, 256 bytes, the rest merges. Short texts give fewer.

    Returns:
        A tokenizer whose begin, end and padding token is number 0.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[SPECIAL_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(documents, trainer=trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=SPECIAL_TOKEN,
        eos_token=SPECIAL_TOKEN,
        pad_token=SPECIAL_TOKEN,
        clean_up_tokenization_spaces=False,
    )
