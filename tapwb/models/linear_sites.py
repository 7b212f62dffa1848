"""Find every matrix of a transformers model and say what it does.

Works on a model without weights (torch's ``meta`` device) as on a loaded one: it reads modules and shapes only. Three
kinds of module hold matrices: ``nn.Linear``, GPT-2's ``Conv1D`` (stored transposed) and the fused expert blocks of
transformers 5, whose parameters are three-dimensional, one slice per expert.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RoleRules = Sequence[tuple[str, str]]

# The first pattern found in a module's full name gives its role; ``mlp`` becomes ``expert`` inside expert blocks.
DEFAULT_ROLES: RoleRules = (
    (r"vision|visual|audio", "encoder.other"),
    (r"shared_expert_gate$|\.router|\.gate$", "expert.router"),
    (r"q_a_proj$", "attention.query_down"),
    (r"q_b_proj$", "attention.query_up"),
    (r"kv_a_proj_with_mqa$", "attention.kv_down"),
    (r"kv_b_proj$", "attention.kv_up"),
    (r"(qkv_proj|query_key_value|c_attn|Wqkv)$", "attention.qkv"),
    (r"\bq_proj$", "attention.query"),
    (r"\bk_proj$", "attention.key"),
    (r"\bv_proj$", "attention.value"),
    (r"\bo_proj$|(attn|attention)\w*\.(out_proj|dense|c_proj)$", "attention.output"),
    (r"(gate_up_proj|up_gate_proj)$", "mlp.gate_up"),
    (r"(gate_proj|\.w1)$", "mlp.gate"),
    (r"(up_proj|\.w3|c_fc|fc_in|fc1|dense_h_to_4h)$", "mlp.up"),
    (r"(down_proj|\.w2|c_proj|fc_out|fc2|dense_4h_to_h)$", "mlp.down"),
    (r"in_proj\w*$", "state.input"),
    (r"x_proj$", "state.select"),
    (r"dt_proj$", "state.step"),
    (r"(out_proj|linear_out)$", "state.output"),
)


@dataclass(frozen=True, slots=True)
class LinearSite:
    """One place in a model that multiplies by a matrix.

    Attributes:
        name: Full name of the module, or of the parameter for fused experts.
        role: See :class:`tapwb.models.anatomy_records.LinearSpec`.
        layer: Index of the layer, or ``None`` outside the layers.
        in_features: Width of the input.
        out_features: Width of the output.
        copies: 1, or the number of experts fused in one parameter.
        bias: Whether a bias is added.
        weight: The parameter itself; its identity tells shared matrices apart.
    """

    name: str
    role: str
    layer: int | None
    in_features: int
    out_features: int
    copies: int
    bias: bool
    weight: nn.Parameter


def linear_sites(model: "PreTrainedModel", roles: RoleRules = ()) -> Iterator[LinearSite]:
    """Yield every matrix of ``model`` once, in module order; a matrix that several modules share comes only first.

    Args:
        model: A transformers model, on any device, ``meta`` included.
        roles: Rules of the family, tried before :data:`DEFAULT_ROLES`.
    """
    head = model.get_output_embeddings()
    hidden_size: int = model.config.get_text_config(decoder=True).hidden_size
    seen: set[int] = set()
    for name, module in model.named_modules():
        for suffix, weight, copies, out_features, in_features in _matrices(name, module, hidden_size):
            if id(weight) in seen:
                continue
            seen.add(id(weight))
            full_name = f"{name}.{suffix}" if suffix else name
            role = "head" if module is head else role_of(full_name, roles)
            bias = getattr(module, f"{suffix}_bias" if suffix else "bias", None) is not None
            yield LinearSite(full_name, role, layer_index(full_name), in_features, out_features, copies, bias, weight)


def role_of(name: str, roles: RoleRules = ()) -> str:
    """The role of the module called ``name``; ``"other.<last part>"`` where no rule knows it."""
    for pattern, role in (*roles, *DEFAULT_ROLES):
        if re.search(pattern, name):
            if role.startswith("mlp.") and "expert" in name:
                kind = "shared_expert" if "shared_expert" in name else "expert"
                return role.replace("mlp", kind, 1)
            return role
    return f"other.{name.rpartition('.')[2]}"


def layer_index(name: str) -> int | None:
    """The first number in a dotted module name, which in every decoder is the layer."""
    match = re.search(r"\.(\d+)(?:\.|$)", name)
    return int(match.group(1)) if match else None


def _matrices(name: str, module: nn.Module, hidden_size: int) -> Iterator[tuple[str, nn.Parameter, int, int, int]]:
    """(suffix, weight, copies, out, in) of the matrices that ``module`` itself holds."""
    weight: Any = getattr(module, "weight", None)
    if isinstance(module, nn.Linear):
        yield "", weight, 1, module.out_features, module.in_features
    elif type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        yield "", weight, 1, weight.shape[1], weight.shape[0]
    elif "expert" in f"{name} {type(module).__name__}".lower():
        for suffix, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 3:
                copies, first, second = parameter.shape
                if _is_transposed(module, suffix, first, second, hidden_size):
                    first, second = second, first
                yield suffix, parameter, copies, first, second


def _is_transposed(module: nn.Module, suffix: str, first: int, second: int, hidden_size: int) -> bool:
    """Whether a fused expert block stores (expert, in, out), as GPT-OSS and Llama 4 do, not (expert, out, in)."""
    declared = getattr(module, "is_transposed", None)  # set by transformers' own expert decorator
    if declared is not None:
        return bool(declared)
    return first != hidden_size if "down" in suffix else second != hidden_size
