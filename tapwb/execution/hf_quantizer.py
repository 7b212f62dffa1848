"""Nested weights as a Hugging Face quantization method.

Importing this module registers the method ``"tap"``, after which

- ``AutoModelForCausalLM.from_pretrained(id, quantization_config=TapConfig())`` loads a model and nests it, and
- ``model.save_pretrained(folder)`` / ``from_pretrained(folder)`` round-trip the packed planes bit by bit.

The model stays a ``PreTrainedModel``: ``generate``, ``pipeline`` and evaluation harnesses work on it. It reads all
planes (8 bits) unless a pass is run inside ``model.tap.context.use(bits)``.
"""

from typing import Any

from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from tapwb.core.errors import UsageError
from tapwb.execution.linear import TokenAdaptiveLinear
from tapwb.execution.nest import nest_model
from tapwb.execution.packed import PackedWeight
from tapwb.quant.nested import PRESETS, NestedLayout


@register_quantization_config("tap")
class TapConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """How to nest a model's weights.

    Args:
        planes: Name of a preset (``"4+4"``, ``"fine"``, ``"wide"``) or the bits of each plane, most significant first.
        group_size: Columns that share a minimum and a step; by default 64 below a hidden size of 2048, else 128.
        calibrated: Set by saved checkpoints whose layers carry level biases.
        **kwargs: Ignored entries of a saved configuration.

    Raises:
        UsageError: If the planes are not a preset or do not sum to 8.
    """

    def __init__(
        self,
        planes: str | list[int] | tuple[int, ...] = "fine",
        group_size: int | None = None,
        calibrated: bool = False,
        **kwargs: Any,
    ) -> None:
        if isinstance(planes, str):
            if planes not in PRESETS:
                raise UsageError(f"no planes {planes!r}. Use {', '.join(PRESETS)}, or a list such as [4, 1, 1, 2].")
            planes = PRESETS[planes].plane_bits
        self.quant_method = "tap"
        self.planes = [int(bits) for bits in planes]
        self.layout  # noqa: B018 - a bad list is refused here, not at the first load
        self.group_size = group_size
        self.calibrated = bool(calibrated)

    @property
    def layout(self) -> NestedLayout:
        """The planes as a layout."""
        return NestedLayout.named("+".join(map(str, self.planes)))

    def to_dict(self) -> dict[str, Any]:
        """What ``config.json`` keeps."""
        return {
            "quant_method": self.quant_method,
            "planes": self.planes,
            "group_size": self.group_size,
            "calibrated": self.calibrated,
        }


@register_quantizer("tap")
class TapHfQuantizer(HfQuantizer):  # type: ignore[misc]
    """Nests a model after its weights are loaded, or builds empty nested layers for a packed checkpoint."""

    requires_calibration = False
    quantization_config: TapConfig

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        if self.pre_quantized:
            config = self.quantization_config
            nest_model(model, layout=config.layout, group_size=config.group_size, is_calibrated=config.calibrated)
            _skip_initialization(model)
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        if not self.pre_quantized:
            nest_model(model, layout=self.quantization_config.layout, group_size=self.quantization_config.group_size)
            return model
        for name, module in model.named_modules():
            if isinstance(module, PackedWeight):
                module.check_finite(name)
        return model

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """Packed planes are ordinary tensors."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Codes have no gradient."""
        return False


def _skip_initialization(model: Any) -> None:
    """Keep Hugging Face from drawing random weights for layers that are about to be read.

    Some families (GPT-2) start a layer from the module around it, by its ``weight``, which nested layers do not have.
    """
    for module in model.modules():
        holds_nested = any(isinstance(child, TokenAdaptiveLinear) for child in module.children())
        if holds_nested and not isinstance(module, PreTrainedModel):
            module._is_hf_initialized = True
