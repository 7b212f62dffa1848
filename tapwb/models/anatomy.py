"""A model's anatomy from its configuration alone.

The model is built on torch's ``meta`` device: every module and shape exists, not one byte of weights does. So matrices,
norms, biases and embeddings are counted exactly as transformers would allocate them, for every family it knows. What a
module does not show, the caches and states, comes from the family's adapter, or for families without one from a forward
pass without memory.
"""

import copy
from collections import defaultdict
from typing import TYPE_CHECKING

import torch

from tapwb.core.errors import UnsupportedModel
from tapwb.models.adapters import adapters
from tapwb.models.anatomy_records import CacheSpec, LinearSpec, ModelAnatomy, StateSpec
from tapwb.models.cache_probe import probe_memory
from tapwb.models.cache_rules import SequenceMemory, attention_memory
from tapwb.models.linear_sites import LinearSite, RoleRules, linear_sites
from tapwb.models.published_shapes import anatomy_from_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

__all__ = [
    "CacheSpec",
    "LinearSite",
    "LinearSpec",
    "ModelAnatomy",
    "StateSpec",
    "anatomy_from_config",
    "anatomy_from_parameters",
    "anatomy_of_model",
    "linear_sites",
    "meta_model",
]

_LENGTH_NAMES = ("max_position_embeddings", "n_positions", "context_length", "max_seq_len", "seq_length")


def anatomy_from_config(config: "PreTrainedConfig") -> ModelAnatomy:
    """Describe the model that ``config`` stands for, without its weights.

    Args:
        config: Any configuration that ``AutoModelForCausalLM`` knows; it is not changed.

    Raises:
        UnsupportedModel: If no causal language model can be built from it.
    """
    return anatomy_of_model(meta_model(config))


def meta_model(config: "PreTrainedConfig") -> "PreTrainedModel":
    """Build the model of ``config`` on the ``meta`` device: all modules and shapes, no memory, random state untouched.

    Raises:
        UnsupportedModel: If transformers knows no causal language model for it, or it needs code of its own.
    """
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(config)  # building sets defaults on the configuration
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
    except (ValueError, KeyError, AttributeError, ImportError) as error:
        raise UnsupportedModel(
            f"no causal language model can be built from a {config.model_type!r} configuration "
            f"({str(error).splitlines()[0][:160]}). Use a decoder that transformers knows."
        ) from error
    return model.eval()


def anatomy_of_model(model: "PreTrainedModel") -> ModelAnatomy:
    """Describe a transformers model, loaded or on the ``meta`` device; quantized layers are not understood."""
    text = model.config.get_text_config(decoder=True)
    roles: RoleRules = adapters[text.model_type].roles if text.model_type in adapters else ()
    memory, source = _memory(model)
    sites = list(linear_sites(model, roles))
    embedding = model.get_input_embeddings().weight
    tied = any(site.weight is embedding for site in sites)
    n_total = sum(p.numel() for p in model.parameters())
    n_linear = sum(site.weight.numel() for site in sites if site.weight is not embedding)
    linears = _group(sites)
    return ModelAnatomy(
        model_type=text.model_type,
        n_layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        vocab_size=embedding.shape[0],
        context_length=_context_length(text),
        linears=linears,
        caches=memory.caches,
        states=memory.states,
        tied_embedding=tied,
        embedding_parameters=embedding.numel(),
        other_parameters=n_total - n_linear - embedding.numel(),
        source=source,
    )


def _memory(model: "PreTrainedModel") -> tuple[SequenceMemory, str]:
    """What the model keeps of a sequence, and how that is known."""
    text = model.config.get_text_config(decoder=True)
    if text.model_type in adapters:
        return adapters[text.model_type].memory(text), "config"
    on_meta = model if model.device.type == "meta" else meta_model(model.config)
    probed = probe_memory(on_meta)
    if isinstance(probed, SequenceMemory):
        return probed, "config; caches by a forward pass without memory"
    return attention_memory(text), f"config; caches guessed by the usual rule ({probed.reason})"


def _group(sites: list[LinearSite]) -> tuple[LinearSpec, ...]:
    """Sites of one role and shape become one record, in order of first appearance."""
    groups: defaultdict[tuple[str, int, int, bool], list[LinearSite]] = defaultdict(list)
    for site in sites:
        groups[site.role, site.in_features, site.out_features, site.bias].append(site)
    return tuple(
        LinearSpec(
            role,
            in_features,
            out_features,
            count=sum(site.copies for site in members),
            layers=tuple(sorted({site.layer for site in members if site.layer is not None})),
            bias=bias,
        )
        for (role, in_features, out_features, bias), members in groups.items()
    )


def _context_length(config: "PreTrainedConfig") -> int | None:
    for name in _LENGTH_NAMES:
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None
