"""LoRA adapters of peft on nested weights: the codes stay as they are, two small matrices beside them learn.

peft knows the layer types it can adapt by class. Ours is made known through its documented (and, in its own words,
experimental) hook for foreign layers, ``LoraConfig._register_custom_module``. That registration is not part of a saved
adapter, so an adapter is attached with :func:`add_lora` and read back with :func:`load_lora`, not with peft's own two
functions. An adapter adds ``B A x`` to the output of :class:`~tapwb.execution.linear.TokenAdaptiveLinear`, whose
arithmetic is untouched; the adapter itself is always computed in full precision, at every level of the weight.

While gradients are recorded, autograd keeps each unpacked block of weights until the backward pass, so training needs
the memory of the floating-point weights of one pass. ``gradient_checkpointing_enable()`` trades that for time; then the
backward pass must run inside the same ``context.use(...)`` block as the forward pass, because it computes layers again.

Method: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", equation 3; on quantized weights, Dettmers
et al. 2023, "QLoRA".
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import Linear as LoraLinear

from tapwb.core.errors import ModelNotFound, UnsupportedModel, UsageError
from tapwb.execution.linear import TokenAdaptiveLinear
from tapwb.models.quiet import without_progress_bars

#: Starting points that need no floating-point weight to start from.
STARTS = (True, False, "gaussian")


class NestedLora(LoraLinear):
    """One nested linear layer with its LoRA matrices; built by peft, see :func:`add_lora`."""

    @property
    def lora_variants(self) -> dict[tuple[str, ...], None]:
        """Plain LoRA only: the variants (DoRA and others) read or change the weight they adapt."""
        return {(): None}

    def _get_in_out_features(self, module: Any) -> tuple[int, int]:
        """Sizes, without peft's warning that it does not know the layer."""
        return module.in_features, module.out_features

    def update_layer(self, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Create the matrices of an adapter, on the device of the weight."""
        super().update_layer(adapter_name, *args, **kwargs)
        base: Any = self.get_base_layer()
        device = next(base.packed.buffers()).device
        if device.type != "meta":
            self.lora_A[adapter_name].to(device)
            self.lora_B[adapter_name].to(device)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refused: adding to the weight would mean quantizing it again.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            "a LoRA adapter cannot be merged into nested weights: they are codes, not numbers. Keep it beside them "
            "(unload() takes it off), or merge it into the original model and nest that."
        )


def add_lora(model: Any, config: LoraConfig | None = None, *, adapter_name: str = "default") -> PeftModel:
    """Attach a new, trainable LoRA adapter to a nested model.

    Only the adapter learns: everything else is frozen. ``model.tap.context.use(bits)`` works on the result as before.

    Args:
        model: A nested model (:func:`tapwb.execution.nest.nest_model`); it is changed in place.
        config: Rank, strength, target modules and so on; by default rank 8 on every nested linear layer but the head.
        adapter_name: Name of the adapter.

    Returns:
        The model inside peft's wrapper. Its ``save_pretrained(folder)`` writes the adapter alone.

    Raises:
        UnsupportedModel: If the model holds no nested linear layer.
        UsageError: If the configuration needs floating-point weights, or there is an adapter already.
    """
    targets = lora_targets(model)
    config = LoraConfig(task_type="CAUSAL_LM") if config is None else config
    if config.target_modules is None or config.target_modules == "all-linear":
        config.target_modules = targets
    config = _registered(config)
    with _device_visible(model):
        return get_peft_model(model, config, adapter_name=adapter_name)


def load_lora(model: Any, folder: Path | str, *, trainable: bool = False, adapter_name: str = "default") -> PeftModel:
    """Attach an adapter that was saved with ``save_pretrained``.

    Args:
        model: A nested model of the same shape; it is changed in place.
        folder: Where the adapter was saved.
        trainable: Whether training shall go on; otherwise the adapter is frozen, too.
        adapter_name: Name of the adapter.

    Raises:
        ModelNotFound: If the folder holds no adapter.
        UnsupportedModel: If the model holds no nested linear layer.
        UsageError: If the adapter needs floating-point weights, or there is one already.
    """
    if not (Path(folder) / "adapter_config.json").is_file():
        raise ModelNotFound(
            f"{folder} holds no adapter_config.json, so there is no LoRA adapter. Give the folder that save_pretrained "
            "wrote."
        )
    lora_targets(model)
    config = LoraConfig.from_pretrained(str(folder))
    config.inference_mode = not trainable
    config = _registered(config)
    with without_progress_bars(), _device_visible(model):
        return PeftModel.from_pretrained(
            model, str(folder), adapter_name=adapter_name, is_trainable=trainable, config=config
        )


def lora_targets(model: Any) -> list[str]:
    """Full names of the layers an adapter goes on: every nested linear layer but the head.

    Fused experts are not among them: they hold several matrices and no linear layer to put an adapter beside.

    Raises:
        UnsupportedModel: If there is none.
        UsageError: If the model already carries adapters.
    """
    if any(isinstance(module, NestedLora) for module in model.modules()):
        raise UsageError(
            "the model already carries a LoRA adapter. Take it off with unload(), or put a second one on the same "
            "layers with add_adapter(name, config) of the wrapper."
        )
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, TokenAdaptiveLinear) and module.fixed_bits is None
    ]
    if not names:
        raise UnsupportedModel(
            f"{type(model).__name__} holds no nested linear layer to put an adapter on. Nest the model first "
            "(nest_model), or use peft directly on the original."
        )
    return names


def _registered(config: LoraConfig) -> LoraConfig:
    """The configuration, refused if it needs floating-point weights, with our layer made known to it."""
    if config.init_lora_weights not in STARTS:
        raise UsageError(
            f"init_lora_weights={config.init_lora_weights!r} starts from floating-point weights, and nested ones are "
            f"codes. Use {', '.join(map(repr, STARTS))}."
        )
    if getattr(config, "use_dora", False):
        raise UsageError("use_dora=True rescales floating-point weights, and nested ones are codes. Use plain LoRA.")
    config._register_custom_module({TokenAdaptiveLinear: NestedLora})
    return config


@contextmanager
def _device_visible(model: Any) -> Iterator[None]:
    """Show peft where each layer lives while it builds the adapters.

    It looks for a parameter, ``weight`` or ``qweight``, and stops with a bare ``StopIteration`` where there is none.
    The name is taken away again: kept, it would go on pointing at the old memory after ``model.to(...)``.
    """
    layers = [module for module in model.modules() if isinstance(module, TokenAdaptiveLinear)]
    for layer in layers:
        layer.qweight = next(layer.packed.buffers())
    try:
        yield
    finally:
        for layer in layers:
            del layer.qweight
