"""Shapes of published dense models, so that "a 13B model" can be weighed without naming a checkpoint.

``anatomy_from_parameters("13B")`` takes the published model of that size; a size between two of them gets a shape from
Llama's proportions. Either way the anatomy says that it is an estimate. No transformers import, no network.

Caches are those of the published architecture. Falcon-40B, for one, shares 8 key-value heads, which serving engines
store; transformers repeats them to 128 before it caches them, and the anatomy from its configuration says so.
"""

from dataclasses import dataclass

from tapwb.core.errors import UsageError
from tapwb.core.units import format_count, parse_parameters
from tapwb.models.anatomy_records import CacheSpec, LinearSpec, ModelAnatomy

# Below, the vocabulary decides the shape more than the layers do.
SMALLEST_PARAMETERS, LARGEST_PARAMETERS = 5 * 10**7, 10**13


@dataclass(frozen=True, slots=True)
class PublishedShape:
    """A dense decoder as its authors published it.

    Attributes:
        size: The size it is sold as: ``"13B"``.
        model: Whose shape it is.
        n_layers: Layers.
        hidden_size: Width of the residual stream.
        intermediate_size: Width inside the MLP.
        heads: Query heads.
        kv_heads: Key-value heads.
        vocab_size: Rows of the embedding table.
        context_length: Tokens it was trained for.
        tied: Whether head and embedding share numbers.
        gated: Whether the MLP has a gate beside its up projection.
        bias: Whether all matrices of the layers have biases.
        norms: Norm weights per layer, in units of the hidden size (twice as many with norm biases).
        head_dim: Numbers per head, where it is not hidden size / heads.
        embedding_size: Width of the embedding table, where it is not the hidden size.
        position_rows: Rows of a learned position table.
    """

    size: str
    model: str
    n_layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    vocab_size: int
    context_length: int
    tied: bool = False
    gated: bool = True
    bias: bool = False
    norms: int = 2
    head_dim: int = 0
    embedding_size: int = 0
    position_rows: int = 0

    def anatomy(self, source: str = "") -> ModelAnatomy:
        """The shape as an anatomy, labelled an estimate."""
        head_dim = self.head_dim or self.hidden_size // self.heads
        table_width = self.embedding_size or self.hidden_size
        layers = tuple(range(self.n_layers))
        parts = [
            ("attention.query", self.hidden_size, self.heads * head_dim),
            ("attention.key", self.hidden_size, self.kv_heads * head_dim),
            ("attention.value", self.hidden_size, self.kv_heads * head_dim),
            ("attention.output", self.heads * head_dim, self.hidden_size),
            *([("mlp.gate", self.hidden_size, self.intermediate_size)] if self.gated else []),
            ("mlp.up", self.hidden_size, self.intermediate_size),
            ("mlp.down", self.intermediate_size, self.hidden_size),
        ]
        linears = [LinearSpec(role, i, o, self.n_layers, layers, self.bias) for role, i, o in parts]
        if table_width != self.hidden_size:
            linears.append(LinearSpec("embedding.up", table_width, self.hidden_size))
            linears.append(LinearSpec("embedding.down", self.hidden_size, table_width))
        linears.append(LinearSpec("head", table_width, self.vocab_size))
        biases = self.n_layers * sum(out for _, _, out in parts) if self.bias else 0
        final_norm = min(self.norms, 2 if self.bias or self.norms > 2 else 1)
        other = biases + self.hidden_size * (self.n_layers * self.norms + final_norm + self.position_rows)
        caches = tuple(CacheSpec(i, "full", self.kv_heads, head_dim, head_dim) for i in layers)
        return ModelAnatomy(
            model_type=self.model,
            n_layers=self.n_layers,
            hidden_size=self.hidden_size,
            vocab_size=self.vocab_size,
            context_length=self.context_length,
            linears=tuple(linears),
            caches=caches,
            states=(),
            tied_embedding=self.tied,
            embedding_parameters=self.vocab_size * table_width,
            other_parameters=other,
            source=source or f"estimated:shape of {self.model}",
        )


# Sources: the configuration files that the authors published with the weights; YaLM: its generation scripts;
# Galactica: arXiv 2211.09085, table 1; LLaMA: arXiv 2302.13971, table 2, with the MLP widths of the checkpoints.
PUBLISHED_SHAPES: tuple[PublishedShape, ...] = (
    PublishedShape("135M", "SmolLM2-135M", 30, 576, 1536, 9, 3, 49152, 8192, tied=True),
    PublishedShape("1.1B", "TinyLlama-1.1B", 22, 2048, 5632, 32, 4, 32000, 2048),
    PublishedShape("3B", "Llama-3.2-3B", 28, 3072, 8192, 24, 8, 128256, 131072, tied=True),
    PublishedShape("7B", "Llama-2-7B", 32, 4096, 11008, 32, 32, 32000, 4096),
    PublishedShape("8B", "Llama-3.1-8B", 32, 4096, 14336, 32, 8, 128256, 131072),
    PublishedShape("13B", "Llama-2-13B", 40, 5120, 13824, 40, 40, 32000, 4096),
    PublishedShape("20B", "GPT-NeoX-20B", 44, 6144, 24576, 64, 64, 50432, 2048, gated=False, bias=True, norms=4),
    PublishedShape("33B", "LLaMA-33B", 60, 6656, 17920, 52, 52, 32000, 2048),
    PublishedShape("34B", "CodeLlama-34B", 48, 8192, 22016, 64, 8, 32000, 16384),
    PublishedShape("40B", "Falcon-40B", 60, 8192, 32768, 128, 8, 65024, 2048, tied=True, gated=False, norms=4),
    PublishedShape("65B", "LLaMA-65B", 80, 8192, 22016, 64, 64, 32000, 2048),
    PublishedShape("70B", "Llama-2-70B", 80, 8192, 28672, 64, 8, 32000, 4096),
    PublishedShape("100B", "YaLM-100B", 80, 10240, 27308, 128, 128, 128000, 1024, tied=True, norms=4,
                   embedding_size=2048),
    PublishedShape("120B", "Galactica-120B", 96, 10240, 40960, 80, 80, 50000, 2048, tied=True, gated=False, norms=0,
                   position_rows=2050),
    PublishedShape("405B", "Llama-3.1-405B", 126, 16384, 53248, 128, 8, 128256, 131072),
)  # fmt: skip


def published_shape(size: str) -> PublishedShape | None:
    """The published model sold as ``size`` (or whose true count is within 1 % of it), or ``None``."""
    wanted = parse_parameters(size)
    for shape in PUBLISHED_SHAPES:
        if parse_parameters(shape.size) == wanted:
            return shape
    for shape in PUBLISHED_SHAPES:
        if abs(shape.anatomy().n_parameters - wanted) <= 0.01 * wanted:
            return shape
    return None


def anatomy_from_parameters(size: str) -> ModelAnatomy:
    """Anatomy of a dense model of about ``size`` parameters.

    A published size gives the published shape. Any other gets Llama's proportions: hidden = 128 * layers, heads of 128,
    MLP about 8/3 of the hidden size (so 12 * layers * hidden^2 parameters in the layers), all heads cached.

    Args:
        size: ``"13B"``, ``"350M"``.

    Raises:
        UsageError: If ``size`` is no count, or outside 50M to 10T.
    """
    wanted = parse_parameters(size)
    if not SMALLEST_PARAMETERS <= wanted <= LARGEST_PARAMETERS:
        raise UsageError(
            f"{size!r} is {wanted} parameters; a shape can be estimated from 50M to 10T. Name a model instead."
        )
    shape = published_shape(size)
    return shape.anatomy() if shape is not None else _llama_like(wanted)


def _llama_like(wanted: int) -> ModelAnatomy:
    vocab_size = 32000
    n_layers = max(2, round((wanted / (12 * 128**2)) ** (1 / 3)))
    unit = 128 if n_layers >= 8 else 32  # heads of 128 would leave small models one head
    best: tuple[float, PublishedShape] | None = None
    for layers in range(max(1, n_layers - 2), n_layers + 3):
        hidden = max(unit, round((wanted / (12 * layers)) ** 0.5 / unit) * unit)
        for width in (hidden - unit, hidden, hidden + unit):
            if width > 0:
                shape = _filled(wanted, layers, width, unit, vocab_size)
                miss = abs(shape.anatomy().n_parameters - wanted)
                shape_cost = miss / wanted + abs(shape.intermediate_size / width - 8 / 3) / 10
                if best is None or shape_cost < best[0]:
                    best = (shape_cost, shape)
    if best is None:  # pragma: no cover - the smallest size leaves several widths
        raise UsageError(f"{wanted} parameters are too few for a shape. Ask for at least 50M.")
    return best[1].anatomy(f"estimated:Llama proportions for {format_count(wanted)} parameters")


def _filled(wanted: int, layers: int, hidden: int, unit: int, vocab_size: int) -> PublishedShape:
    """The shape whose MLP width takes up what attention and tables leave of ``wanted``."""
    tied = wanted < 10**9
    tables = vocab_size * hidden * (1 if tied else 2)
    rest = wanted - tables - layers * 4 * hidden**2
    step = 64 if hidden >= 1024 else 8
    intermediate = max(step, round(rest / (3 * layers * hidden) / step) * step)
    heads = hidden // unit
    name = "llama-like"
    return PublishedShape(
        format_count(wanted), name, layers, hidden, intermediate, heads, heads, vocab_size, 4096, tied=tied
    )
