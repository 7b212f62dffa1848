"""Turn a loaded model into one nested copy of itself, in place.

Every linear layer, fused mixture of experts, the embedding and the head are replaced by layers that hold packed planes.
The replacement is one matrix at a time, so that the peak is one model plus one matrix, and afterwards no floating-point
copy of a quantized weight is alive. On a model whose weights are still on the ``meta`` device the same walk builds the
empty layers a packed checkpoint is loaded into. Recurrent layers are replaced around their matrices
(:mod:`tapwb.execution.state.mixers`): transformers' own ask matrices for their weights, and lose states.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tapwb.core.errors import CorruptWeights, InvalidTensor, UnsupportedModel
from tapwb.core.heap import large_blocks_apart, trim_heap
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.execution.bits import BitsContext
from tapwb.execution.level_correction import LevelCorrection
from tapwb.execution.linear import NestedEmbedding, TiedHead, TokenAdaptiveExperts, TokenAdaptiveLinear
from tapwb.execution.packed import PackedWeight
from tapwb.execution.state.mixers.own_blocks import rename_blocks
from tapwb.execution.state.mixers.replace import replace_mixers
from tapwb.quant.calibration import LEVELS as CALIBRATED_LEVELS
from tapwb.quant.calibration import CalibratedCells
from tapwb.quant.nested import NestedLayout, quantize_nested

#: Embedding and head are always read at 8 bits: one plane, nothing to unpack.
TABLE_LAYOUT = NestedLayout.named("8")
#: Models of transformers that ask their head's weight for its type, and only for that.
_ASK_HEAD_FOR_TYPE = ("MambaForCausalLM", "FalconMambaForCausalLM", "Mamba2ForCausalLM")
_PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class NestedModel:
    """A model whose weights are nested.

    Attributes:
        model: The Hugging Face model, now holding adaptive layers.
        context: Where the levels of a forward pass are set.
        layout: Planes of the linear layers.
        group_size: Columns per group.
        kept: Names of linear layers that were left as they were, with the reason.
    """

    model: nn.Module
    context: BitsContext
    layout: NestedLayout
    group_size: int
    kept: dict[str, str]

    @property
    def levels(self) -> tuple[int, ...]:
        """Levels every linear layer can be read at."""
        return self.layout.levels

    def weights_bytes(self) -> int:
        """Bytes of all parameters and buffers, counted once per storage."""
        return resident_bytes(self.model)

    def bytes_read(self, bits: int) -> int:
        """Weight bytes one pass reads when every linear layer is read at ``bits``.

        The whole head is read; of an embedding table that is not the head, only one row, which is left out.
        """
        total = 0
        for module in self.model.modules():
            if isinstance(module, TokenAdaptiveLinear | TokenAdaptiveExperts):
                level = module.fixed_bits or bits if isinstance(module, TokenAdaptiveLinear) else bits
                total += sum(p().bytes_read(level) for p in module.modules() if isinstance(p, PackedWeight))
            elif isinstance(module, TiedHead):
                total += module.table().bytes_read(8)
        return total

    def bits_per_weight(self, bits: int) -> float:
        """Bits that reading one weight of the linear layers takes at a level, minima and steps counted.

        Embedding and head are not counted: they are read at 8 bits at every level.
        """
        nbytes = count = 0
        for module in self.model.modules():
            if isinstance(module, TokenAdaptiveExperts) or (
                isinstance(module, TokenAdaptiveLinear) and not module.fixed_bits
            ):
                packed = [p for p in module.modules() if isinstance(p, PackedWeight)]
                nbytes += sum(p().bytes_read(bits) for p in packed)
                count += sum(p.rows * p.cols for p in packed)
        return 8 * nbytes / count


def default_group_size(hidden_size: int) -> int:
    """64 columns for narrow models, 128 from a hidden size of 2048 on."""
    return 64 if hidden_size < 2048 else 128


def nest_model(
    model: Any,
    *,
    layout: NestedLayout,
    group_size: int | None = None,
    cells: Mapping[str, CalibratedCells] | None = None,
    is_calibrated: bool = False,
    dtype: str | None = None,
    progress: Progress = NO_PROGRESS,
) -> NestedModel:
    """Replace the weights of ``model`` by nested ones, in place.

    Args:
        model: A ``PreTrainedModel``, with weights, or on the meta device to be filled from a packed checkpoint.
        layout: Planes of the linear layers.
        group_size: Columns per group; by default 64 below a hidden size of 2048, else 128.
        cells: Calibrated cells by name of the linear layer; layers without get plain ones.
        is_calibrated: On the meta device: the checkpoint has level biases, make room for them.
        dtype: Of embeddings and of what is not nested, and so of activations; by default as they are.
        progress: Told about every matrix.

    Returns:
        The handle with which passes are run.

    Raises:
        CorruptWeights: If a weight is NaN or infinite; names it.
        UnsupportedModel: If the model holds no linear layer this program can replace, or is quantized already.
    """
    _refuse_codes(model)
    replace_mixers(model)
    rename_blocks(model)
    config = model.config.get_text_config()
    size = group_size or default_group_size(config.hidden_size)
    context = BitsContext(top_level=layout.levels[-1])
    walk = _Walk(model, config.num_hidden_layers, layout, size, context, cells or {}, is_calibrated)
    # Names only: a list of the modules would keep every floating-point weight alive until the end.
    targets = [name for name, _ in walk.targets()]
    if not targets:
        raise UnsupportedModel(
            f"{type(model).__name__} holds no linear layer that can be nested. Load a causal language model."
        )
    progress.stage("quantize weights", total=len(targets) + 1, unit="matrix")
    with large_blocks_apart():
        walk.replace_tables()
        progress.advance()
        for name in targets:
            walk.replace(name, model.get_submodule(name))
            progress.advance()
    _settle_dense(model, None if dtype is None else getattr(torch, dtype))
    trim_heap()
    handle = NestedModel(model, context, layout, size, walk.kept)
    model.tap = handle
    # What save_pretrained writes, so that from_pretrained builds nested layers again (see hf_quantizer).
    if getattr(model.config, "quantization_config", None) is None:
        model.config.quantization_config = {
            "quant_method": "tap",
            "planes": list(layout.plane_bits),
            "group_size": size,
            "calibrated": bool(cells) or is_calibrated,
        }
    return handle


def nestable(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """Linear layers and fused experts of a model by name, without the head."""
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        is_linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
        if module is not head and (is_linear or _is_fused_experts(module)):
            yield name, module


def table_of(model: Any) -> dict[str, nn.Module]:
    """The head by the name its cells have: ``"embedding"`` if it shares the embedding's table, ``"head"`` otherwise.

    Empty for a model without a head.
    """
    head = model.get_output_embeddings()
    return {} if head is None else {"embedding" if _is_tied(model) else "head": head}


def resident_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers of a module, counted once per storage."""
    held = [t.untyped_storage() for t in _tensors(module) if not t.is_meta]  # meta: on disk, or not there yet
    storages = {storage.data_ptr(): storage.nbytes() for storage in held}
    return sum(storages.values())


def _settle_dense(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Copy what was not nested (norms, biases), in its dtype: one view keeps the whole mapped file in memory."""
    for parameter in model.parameters():
        if not parameter.is_meta:
            parameter.data = parameter.data.to(dtype, copy=True) if dtype else parameter.data.clone()
    for module in model.modules():
        if dtype and isinstance(module, NestedEmbedding):
            module.dtype = dtype


def _refuse_codes(model: nn.Module) -> None:
    """Other methods keep codes in a class of linear layer of their own; codes may even be stored as floating point."""
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        weight = module.weight
        if weight.dtype not in _PLAIN or weight.shape != (module.out_features, module.in_features):
            raise UnsupportedModel(
                f"{name} is already quantized ({type(module).__name__}, {str(weight.dtype).removeprefix('torch.')}); "
                "codes cannot be nested. Load the original weights, without quantization_config."
            )


class _Walk:
    """One pass over the modules of a model, replacing as it goes."""

    def __init__(
        self,
        model: Any,
        n_layers: int,
        layout: NestedLayout,
        group_size: int,
        context: BitsContext,
        cells: Mapping[str, CalibratedCells],
        is_calibrated: bool,
    ) -> None:
        self.model, self.n_layers, self.layout, self.group_size = model, n_layers, layout, group_size
        self.context, self.cells, self.is_calibrated = context, cells, bool(cells) or is_calibrated
        self.kept: dict[str, str] = {}

    def targets(self) -> Iterator[tuple[str, nn.Module]]:
        """What will be replaced; notes what will not."""
        for name, module in nestable(self.model):
            if getattr(module, "is_transposed", False) or getattr(module, "has_bias", False):
                self.kept[name] = "experts stored transposed or with biases"
            else:
                yield name, module

    def replace(self, name: str, module: nn.Module) -> None:
        """Replace one linear layer or one fused mixture of experts."""
        fraction = self._fraction(name)
        new: nn.Module
        if _is_fused_experts(module):
            experts: Any = module
            gate_up = [self._pack(f"{name}.gate_up[{i}]", w) for i, w in enumerate(experts.gate_up_proj)]
            down = [self._pack(f"{name}.down[{i}]", w) for i, w in enumerate(experts.down_proj)]
            new = TokenAdaptiveExperts(gate_up, down, experts.act_fn, self.context, layer_fraction=fraction, site=name)
        else:
            linear: Any = module
            weight = linear.weight.T if type(module).__name__ == "Conv1D" else linear.weight
            bias = None if linear.bias is None else linear.bias.detach()
            packed = self._pack(name, weight)
            new = TokenAdaptiveLinear(
                packed,
                bias,
                self.context,
                layer_fraction=fraction,
                correction=self._correction(name, weight),
                site=name,
            )
        self._put(name, new)

    def _correction(self, name: str, weight: Tensor, among: Sequence[int] | None = None) -> LevelCorrection | None:
        """What calibration puts back at each level; room for it on the meta device, zero for plain cells."""
        if not self.is_calibrated:
            return None
        levels = [level for level in among or self.layout.levels if level in CALIBRATED_LEVELS]
        if weight.is_meta or name not in self.cells:  # a checkpoint has a table for every layer or for none
            return LevelCorrection(levels, weight.shape[0], device=weight.device)
        cells, index = self.cells[name], [CALIBRATED_LEVELS.index(level) for level in levels]
        gain, bias = (table[index].to(weight.device) for table in (cells.level_gain, cells.level_bias))
        return LevelCorrection.of(levels, gain, bias)

    def replace_tables(self) -> None:
        """Replace the input embedding and the head; a tied pair becomes one table."""
        embedding, head = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        names = {id(module): name for name, module in self.model.named_modules()}
        tied = head is not None and _is_tied(self.model)
        correction = None if head is None else self._correction("embedding" if tied else "head", head.weight, (8,))
        table = NestedEmbedding(
            self._pack("embedding", embedding.weight, TABLE_LAYOUT),
            embedding.weight.dtype,
            scale=float(getattr(embedding, "scalar_embed_scale", 1.0)),
            padding_idx=embedding.padding_idx,
        )
        self._put(names[id(embedding)], table)
        if head is None:
            return
        new: nn.Module
        bias = None if getattr(head, "bias", None) is None else head.bias.detach()
        if tied:
            new = TiedHead(table, bias, correction)
            # Nothing is left to tie: the head has no tensor of its own (see TiedHead).
            self.model.all_tied_weights_keys = {}
            self.model._tied_weights_keys = {}
        else:
            # A file may hold a head of its own although its configuration says otherwise; a saved copy must not.
            self.model.config.get_text_config().tie_word_embeddings = False
            packed = self._pack("head", head.weight, TABLE_LAYOUT)
            new = TokenAdaptiveLinear(packed, bias, self.context, fixed_bits=8, correction=correction)
        if type(self.model).__name__ in _ASK_HEAD_FOR_TYPE:
            new.weight = torch.empty(0, dtype=head.weight.dtype)  # no parameter: it is neither saved nor counted
        self._put(names[id(head)], new)

    def _pack(self, name: str, weight: Tensor, layout: NestedLayout | None = None) -> PackedWeight:
        rows, cols = weight.shape
        group_size = min(self.group_size, -(-cols // 8) * 8)
        if weight.is_meta:
            return PackedWeight(rows, cols, group_size, layout or self.layout, device="meta")
        try:
            if name in self.cells:
                return PackedWeight.from_nested(self.cells[name].pack(weight.detach(), layout or self.layout))
            nested = quantize_nested(weight.detach(), group_size=group_size, layout=layout or self.layout)
        except InvalidTensor as error:
            raise CorruptWeights(f"weight {name}: {error}") from error
        return PackedWeight.from_nested(nested)

    def _put(self, name: str, module: nn.Module) -> None:
        parent, _, child = name.rpartition(".")
        setattr(self.model.get_submodule(parent), child, module)

    def _fraction(self, name: str) -> float:
        index = re.search(r"\.(\d+)\.", name)
        return min(int(index.group(1)) / self.n_layers, 0.999999) if index else 0.0


def _is_tied(model: Any) -> bool:
    """One tensor; without tensors yet, the configuration tells."""
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    return bool(head is embedding or (head.is_meta and model.config.get_text_config().tie_word_embeddings))


def _is_fused_experts(module: nn.Module) -> bool:
    return isinstance(getattr(module, "gate_up_proj", None), nn.Parameter) and isinstance(
        getattr(module, "down_proj", None), nn.Parameter
    )


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()
