"""Put a model into memory: resolve, check, load, check again.

transformers fills missing tensors with random numbers and warns; here that is an error, as are NaN weights and a load
that cannot fit. What comes out is still a plain ``PreTrainedModel``.
"""

from pathlib import Path
from typing import Any

from tapwb.core import settings
from tapwb.core.errors import CorruptWeights, OutOfMemory, UnsupportedModel, UsageError, WeightsRefused
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.models.info import LoadedModel, ResolvedModel
from tapwb.models.memory import DTYPE_BYTES, STORED, check_memory, free_memory_bytes, stored_dtype, weights_bytes
from tapwb.models.quiet import without_progress_bars
from tapwb.models.resolve import resolve_model
from tapwb.models.safety import read_config, weight_files
from tapwb.models.without_triton import import_dynamo_without_triton

# Weights are never all a process needs; leave room for activations when filling a device.
_OFFLOAD_HEADROOM = 0.9


def load_model(
    model_id: str | Path,
    *,
    dtype: str = "bfloat16",
    device: str | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    offload_to_cpu: bool = False,
    max_memory_bytes: int | None = None,
    check_finite: bool = True,
    progress: Progress = NO_PROGRESS,
) -> LoadedModel:
    """Load a causal language model and its tokenizer.

    Args:
        model_id: Catalog name, folder, GGUF or rwkv.cpp file, or Hugging Face id.
        dtype: ``"bfloat16"``, ``"float16"``, ``"float32"``, or ``"stored"`` for the file's own: its weights are then
            mapped and not copied.
        device: Torch device; ``None`` follows ``TAPWB_DEVICE``, and CUDA where there is one.
        revision: Branch, tag or commit on the hub; the commit is pinned in ``info.revision``.
        allow_pickle: Accept pickle weights (read with ``weights_only=True``).
        trust_remote_code: Run Python code that comes with the model.
        offload_to_cpu: Keep what does not fit on the device in host memory, and what does not fit there on disk
            (an ``accelerate`` device map; works without a GPU too, then between memory and disk).
        max_memory_bytes: Most bytes of weights to keep on the device.
        check_finite: Look at every weight for NaN and infinity (about 0.1 s per gigabyte).
        progress: Told about every stage.

    Returns:
        The model in evaluation mode, with its tokenizer, anatomy and identity.

    Raises:
        UsageError: If ``dtype`` or ``device`` is not one of the allowed ones.
        ModelError: If it cannot be found, fetched, trusted or read; see :func:`resolve_model`.
        OutOfMemory: If the weights cannot fit, before anything is allocated.
    """
    if dtype not in (*DTYPE_BYTES, STORED):
        raise UsageError(f"dtype {dtype!r} is not one of {', '.join(DTYPE_BYTES)} and {STORED}. Choose one of them.")
    device = _choose_device(device)
    _use_threads(settings.n_threads())
    import_dynamo_without_triton()
    resolved = resolve_model(
        model_id, revision=revision, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code, progress=progress
    )
    config, files = read_config(resolved.path), weight_files(resolved.path, allow_pickle=allow_pickle)
    dtype = stored_dtype(config) if dtype == STORED else dtype
    options: dict[str, Any] = {
        "use_safetensors": files[0].suffix == ".safetensors",
        "trust_remote_code": trust_remote_code,
    }
    needed = weights_bytes(files, config, dtype)
    if offload_to_cpu:
        options |= _offload_options(resolved, device, max_memory_bytes)
    else:
        check_memory(resolved.info.id, needed, device, dtype, max_memory_bytes)
        options["device_map"] = device
    progress.stage("load weights", total=needed, unit="byte")
    model = _read_weights(resolved, dtype, options)
    if check_finite:
        _check_finite(model, resolved)
    progress.advance(needed)
    return _handle(model, resolved, device, dtype, trust_remote_code)


def _handle(model: Any, resolved: ResolvedModel, device: str, dtype: str, trust_remote_code: bool) -> LoadedModel:
    from tapwb.models.anatomy import anatomy_from_config

    try:
        tokenizer = read_tokenizer(resolved.path, trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise UnsupportedModel(
            f"the tokenizer of {resolved.info.id} cannot be read: {_one_line(error)}. Put its tokenizer.json beside "
            "the weights."
        ) from error
    anatomy = anatomy_from_config(model.config)
    return LoadedModel(model.eval(), tokenizer, anatomy, resolved.info, device, dtype)


def read_tokenizer(folder: Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer that the folder holds.

    ``AutoTokenizer`` goes by the model type first: a folder of type ``qwen2`` gets the text splitting of Qwen's own
    tokenizer, whatever its ``tokenizer.json`` says. One that names the plain class means that file as it is.

    Args:
        folder: Of the model.
        trust_remote_code: Run Python code that comes with it.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    named = get_tokenizer_config(folder).get("tokenizer_class")
    if named == PreTrainedTokenizerFast.__name__ and (folder / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)


def _read_weights(resolved: ResolvedModel, dtype: str, options: dict[str, Any]) -> Any:
    """``from_pretrained`` with its failures turned into ours."""
    import pickle

    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    from tapwb.models.own_models import register_own_models

    register_own_models()
    try:
        with without_progress_bars():
            model, report = AutoModelForCausalLM.from_pretrained(
                resolved.path,
                dtype=getattr(torch, dtype),
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, by name, instead of raised with a traceback
                **options,
            )
    except (SafetensorError, EOFError) as error:
        raise CorruptWeights(
            f"the weights of {resolved.info.id} cannot be read: {_one_line(error)}. Fetch the model again."
        ) from error
    except pickle.UnpicklingError as error:
        raise WeightsRefused(
            f"the pickle weights of {resolved.info.id} hold more than tensors, which is refused even with "
            f"allow_pickle: {_one_line(error)}. Convert them to safetensors where you trust them."
        ) from error
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"{resolved.info.id} did not fit: {_one_line(error)}. Pass offload_to_cpu=True, or choose a smaller model."
        ) from error
    except (ValueError, KeyError, RuntimeError) as error:
        raise UnsupportedModel(
            f"{resolved.info.id} cannot be loaded as a causal language model: {_one_line(error)}. "
            "Choose a decoder model that transformers knows."
        ) from error
    for kind in ("missing_keys", "mismatched_keys"):
        if names := sorted(key if isinstance(key, str) else str(key[0]) for key in report[kind]):
            wrong = "missing" if kind == "missing_keys" else "of another shape than config.json asks for"
            raise CorruptWeights(
                f"{len(names)} tensors of {resolved.info.id} are {wrong}, first {names[0]!r}. Fetch the model again."
            )
    return model


def _check_finite(model: Any, resolved: ResolvedModel) -> None:
    import torch

    # One thread reads at memory speed already; two, on a busy machine, wait for each other at every tensor (SmolLM2:
    # 33 ms against 2.5 s).
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_meta or not tensor.is_floating_point() or tensor.numel() == 0:
                continue  # offloaded to disk: its bytes are looked at when they are used
            low, high = torch.aminmax(tensor.detach())
            if not bool(torch.isfinite(low)) or not bool(torch.isfinite(high)):
                raise CorruptWeights(
                    f"tensor {name!r} of {resolved.info.id} holds NaN or infinite values; every weight must be finite. "
                    "Fetch the model again, or load it with dtype='float32' if it only overflows float16."
                )
    finally:
        torch.set_num_threads(n_threads)


def _use_threads(n_threads: int | None) -> None:
    """Apply TAPWB_THREADS; without it torch's own choice stays."""
    import torch

    if n_threads is not None:
        torch.set_num_threads(n_threads)


def _choose_device(device: str | None) -> str:
    import torch

    chosen = device or settings.get("TAPWB_DEVICE")
    if chosen == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if chosen != "cpu" and not chosen.startswith("cuda"):
        raise UsageError(f"device {chosen!r} is not one of cpu, cuda, cuda:N. Choose one of them.")
    if chosen.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"device {chosen!r} was asked for, but torch sees no CUDA device here. Use device='cpu'.")
    return chosen


def _offload_options(resolved: ResolvedModel, device: str, max_memory_bytes: int | None) -> dict[str, Any]:
    """Device map: the device first, then host memory, then disk."""
    limits: dict[int | str, int] = {"cpu": int(free_memory_bytes("cpu") * _OFFLOAD_HEADROOM)}
    if device.startswith("cuda"):
        index = int(device.partition(":")[2] or 0)
        free = int(free_memory_bytes(device) * _OFFLOAD_HEADROOM)
        limits[index] = free if max_memory_bytes is None else min(free, max_memory_bytes)
    elif max_memory_bytes is not None:
        limits["cpu"] = min(limits["cpu"], max_memory_bytes)
    folder = settings.cache_dir() / "offload" / resolved.info.checksum_sha256[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return {"device_map": "auto", "max_memory": limits, "offload_folder": folder}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")[:300]
