"""Turn a growing list of tokens into text pieces that never tear a character apart."""

from typing import Any


class TextStream:
    """Decodes tokens as they come.

    A token may end in the middle of a UTF-8 character or change the spacing before it; text is handed out only once
    the tokens behind it decode to whole characters.

    Args:
        tokenizer: A Hugging Face tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._pending: list[int] = []
        self._said = ""

    def push(self, token_id: int) -> str:
        """Add a token and return the text that became certain, possibly empty."""
        self._pending.append(token_id)
        text = self._decode()
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        return self._emit(text)

    def flush(self) -> str:
        """The rest, even if it ends in an incomplete character."""
        return self._emit(self._decode())

    def _decode(self) -> str:
        return str(self._tokenizer.decode(self._pending, skip_special_tokens=True))

    def _emit(self, text: str) -> str:
        piece, self._said = text[len(self._said) :], text
        if text.endswith("\n"):  # a safe point: nothing after a line break changes what came before
            # The last token stays, because some tokenizers drop the space before the first token they decode.
            self._pending = self._pending[-1:]
            self._said = self._decode()
        return piece
