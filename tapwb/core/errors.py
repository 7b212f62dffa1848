"""Every exception this program raises on purpose.

The tree (an exit status of the command line belongs to each branch)::

    TapError                     1   something could not be done
    ├── UsageError               2   what was asked for does not make sense
    │   ├── SettingsError            an environment variable or option has a bad value
    │   ├── UnknownName              a name that no registry knows
    │   └── PrecisionSpecError       a precision that the grammar does not know
    ├── ModelError               1
    │   ├── ModelNotFound            no such catalog name, folder, file or hub id
    │   ├── DownloadFailed           the source did not deliver
    │   ├── ChecksumMismatch         what was delivered is not what was expected
    │   ├── CorruptWeights           truncated, garbled, NaN or infinite weights
    │   ├── WeightsRefused           pickle weights or remote code without consent
    │   └── UnsupportedModel         an architecture this program cannot run
    ├── QuantError               1
    │   ├── InvalidTensor            NaN, infinite or wrongly shaped input
    │   └── UnsupportedBits          a bit-width outside the format's range
    ├── PlanError                1
    │   ├── BudgetError              a target no plan can meet
    │   └── PlanFileError            a plan file that cannot be used
    ├── ExecutionError           1
    │   ├── EmptyPrompt              nothing to process
    │   └── PromptTooLong            more tokens than the model's context
    ├── CapacityError            1
    │   ├── DiskFull                 no room to write
    │   └── OutOfMemory              no room to load or run
    ├── StoreError               1   a saved run cannot be read or written
    ├── ReportError              1   a report cannot be made
    └── Cancelled              130   the user stopped the job

Messages are one line and hold three things: what came, what is allowed, what to do.
"""


class TapError(Exception):
    """Base of every deliberate error. ``str(error)`` is one line fit to show to a user."""

    exit_code: int = 1

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class UsageError(TapError):
    """What was asked for does not make sense; nothing was attempted."""

    exit_code = 2


class SettingsError(UsageError):
    """An environment variable or option has a value outside its range."""


class UnknownName(UsageError):
    """A name that the registry it was looked up in does not hold."""


class PrecisionSpecError(UsageError):
    """A precision text that the grammar of the command line does not know."""


class ModelError(TapError):
    """A model could not be found, fetched, read or accepted."""


class ModelNotFound(ModelError):
    """No catalog entry, folder, file or hub id answers to this name."""


class DownloadFailed(ModelError):
    """The source of the weights did not deliver them."""


class ChecksumMismatch(ModelError):
    """The delivered file is not the expected one."""


class CorruptWeights(ModelError):
    """A weights file is truncated or garbled, or a weight is NaN or infinite."""


class WeightsRefused(ModelError):
    """Loading would execute foreign code (pickle weights, remote code) and nobody agreed to that."""


class UnsupportedModel(ModelError):
    """An architecture, or a part of one, that this program cannot describe or run."""


class QuantError(TapError):
    """A tensor could not be quantized or dequantized."""


class InvalidTensor(QuantError):
    """NaN, infinite or wrongly shaped input to a quantizer."""


class UnsupportedBits(QuantError):
    """A bit-width that the format does not store."""


class PlanError(TapError):
    """A precision plan is invalid or cannot be made."""


class BudgetError(PlanError):
    """No plan over the given levels meets the target."""


class PlanFileError(PlanError):
    """A plan file is missing, garbled, or made for another text or model."""


class ExecutionError(TapError):
    """The model could not be run on this input."""


class EmptyPrompt(ExecutionError):
    """The prompt holds no token."""


class PromptTooLong(ExecutionError):
    """The prompt (plus the requested answer) does not fit the model's context."""


class CapacityError(TapError):
    """The machine has no room for what was asked."""


class DiskFull(CapacityError):
    """Writing would fill, or has filled, the disk."""


class OutOfMemory(CapacityError):
    """Loading or running would exceed memory."""


class StoreError(TapError):
    """A saved run cannot be read or written."""


class ReportError(TapError):
    """A report could not be produced."""


class Cancelled(TapError):
    """The user stopped the job."""

    exit_code = 130

    def __init__(self, message: str = "cancelled by the user") -> None:
        super().__init__(message)
