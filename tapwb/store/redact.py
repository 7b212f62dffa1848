"""Keep credentials out of saved runs.

A run may hold settings and answers that a person pasted a key into, and runs are shared. Whatever looks like a key is
replaced by a marker before anything reaches the disk; the marker says that something was there.
"""

import re
from typing import Any

MARKER = "[redacted: looks like a credential]"

# Each kind asks for a digit, which real keys have and hyphenated words ("sk-learn-compatible-estimator") have not.
_HAS_DIGIT = r"(?=[A-Za-z0-9._~+/=-]*\d)"
_LOOKS_LIKE_KEY = re.compile(
    "|".join(
        (
            rf"\bsk-{_HAS_DIGIT}[A-Za-z0-9_-]{{16,}}",  # OpenAI, Anthropic, OpenRouter and their imitators
            rf"(?i:\bbearer)\s+{_HAS_DIGIT}[A-Za-z0-9._~+/=-]{{8,}}",
            rf"(?i:\bbasic)\s+{_HAS_DIGIT}[A-Za-z0-9+/]{{16,}}={{0,2}}",
            rf"\bhf_{_HAS_DIGIT}[A-Za-z0-9]{{20,}}",
            r"\bgh[oprsu]_[A-Za-z0-9]{30,}",
            r"\bgithub_pat_[A-Za-z0-9_]{30,}",
            r"\bxai-[A-Za-z0-9]{20,}",
            r"\bgsk_[A-Za-z0-9]{20,}",
            r"\bAIza[A-Za-z0-9_-]{30,}",
            r"\bA(?:KIA|SIA)[A-Z0-9]{16}\b",
            r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
            r"(?<=://)[^/\s:@]+:[^/\s:@]+(?=@)",  # user:password in an address
        )
    ),
    re.DOTALL,
)
#: Fields whose text is secret whatever it looks like; "token" is not one, a language model is full of them.
_SECRET_NAMES = frozenset(
    {"api_key", "apikey", "authorization", "access_key", "client_secret", "password", "passwd", "secret", "secret_key"}
)


def redact_text(text: str) -> str:
    """``text`` with everything that looks like a credential replaced by the marker."""
    return _LOOKS_LIKE_KEY.sub(MARKER, text)


def redact(value: Any) -> Any:
    """Plain JSON data with every credential-like text replaced, in values and in names of fields.

    Args:
        value: Dictionaries, lists, texts, numbers, booleans, ``None``.
    """
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, list):
        return [redact(part) for part in value]
    if isinstance(value, dict):
        return {
            redact_text(name): MARKER if _is_secret(name) and isinstance(part, str) and part else redact(part)
            for name, part in value.items()
        }
    return value


def _is_secret(name: str) -> bool:
    plain = name.lower().replace("-", "_")
    return plain in _SECRET_NAMES or plain.endswith(("_api_key", "_password", "_secret"))
