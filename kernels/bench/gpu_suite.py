"""Everything about one card in one command: ``make bench-gpu``, or ``python kernels/bench/gpu_suite.py``.

Needs this repository, torch, triton and transformers; no network, no tokenizer, no weights: models of the shapes of
Llama-2-7B and Mistral-7B get random ones, in place. Correctness comes first: if a gate is red, the suite says which and
prints no speed. It then measures what a copy reaches, the kernels against that, decoding end to end, memory, energy by
the driver's counter, and prefill, within ``--budget`` seconds, and writes JSON lines.

    --interpret     tiny shapes on a CPU, in Triton's interpreter: shows that the suite works; its times mean nothing
    --tune          search for launches instead, and write ``kernels/bench/tuned/<card>.json``
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import alone  # noqa: F401 - makes the imports below work
import torch
from gates import GATES, Gate, relative, run_gates
from gpu_kernels import attention_records, linear_records, mixed_records, norm_records, tune
from gpu_measure import EnergyCounter, Machine, copy_ceiling, interval, provenance, ratio
from gpu_model import Dense, Nested, StaticDecoder, random_model

from tapwb_kernels import launch as launches

PROMPT, LEVELS = 16, (8, 4)
MEAN_BITS = 5.5
WINDOW_S = 5.0
"""Length of an energy window: fifty ticks of the counter."""

MODELS: dict[str, dict[str, int]] = {
    "llama-2-7b": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
    },
    "mistral-7b": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 4096,
    },
}
TINY = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def model_gates(device: str) -> Iterator[Gate]:
    """The decoder the arms share: against transformers' logits, and nested against dense weights of the same values.

    Args:
        device: Torch device.
    """
    for family in ("llama", "mistral"):
        model = random_model(family, TINY | {"num_hidden_layers": 2}, torch.float32, device)
        tokens = torch.randint(0, 96, (9,), generator=torch.Generator().manual_seed(1)).to(device)
        with torch.no_grad():
            expected = model(tokens[None]).logits[0, -1].cpu()
        dense = StaticDecoder(model, Dense, 32)
        dense.prefill(tokens, 8)
        yield Gate(f"{family} decoder, prefill", relative(dense.logits, expected), 1e-4)
        yield Gate(f"{family} decoder, steps", relative(stepped(dense, tokens, 8), expected), 1e-4)
        nested = StaticDecoder(model, Nested, 32)
        for bits in LEVELS:
            same = StaticDecoder(model, lambda w, bits=bits: Dense(Nested(w).dense(bits, w.dtype)), 32)
            # Embedding and head are read at 8 bits at every level.
            same.embedding, same.head = (Dense(t.dense(8, torch.float32)) for t in (nested.embedding, nested.head))
            ours, theirs = stepped(nested, tokens, bits), stepped(same, tokens, bits)
            yield Gate(f"{family} decoder at {bits} bits, steps", relative(ours, theirs.cpu()), 1e-4)


def stepped(decoder: StaticDecoder, tokens: torch.Tensor, bits: int) -> torch.Tensor:
    """Logits after some tokens, one step each.

    Args:
        decoder: With an empty cache or one to overwrite.
        tokens: Shape (token,).
        bits: Level.
    """
    decoder.position.zero_()
    for token in tokens:
        decoder.token.copy_(token.view(1))
        decoder.step(bits)
    return decoder.logits.clone()


class Arms:
    """The ways of decoding that are compared, on one model.

    Args:
        machine: Where.
        name: Key of ``MODELS``.
        n_tokens: Tokens to decode in a round.
    """

    def __init__(self, machine: Machine, name: str, n_tokens: int) -> None:
        self.machine, self.name, self.n_tokens = machine, name, n_tokens
        shape, dtype = (MODELS[name], torch.bfloat16) if machine.is_card else (TINY, torch.float32)
        self.model = random_model(name.partition("-")[0], shape, dtype, machine.device)
        generator = torch.Generator().manual_seed(2)
        self.prompt = torch.randint(0, shape["vocab_size"], (PROMPT,), generator=generator).to(machine.device)
        before = allocated(machine, reset=True)
        self.dense = StaticDecoder(self.model, Dense, PROMPT + n_tokens)
        middle = allocated(machine, reset=True)
        self.nested = StaticDecoder(self.model, Nested, PROMPT + n_tokens)
        self.allocated = {"dense": middle[0] - before[0], "nested": allocated(machine)[0] - middle[0]}
        self.building_peak = allocated(machine)[1] - middle[0]
        chances = torch.rand(n_tokens, generator=generator)
        high_share = (MEAN_BITS - LEVELS[1]) / (LEVELS[0] - LEVELS[1])
        self.plan = [LEVELS[0] if chance < high_share else LEVELS[1] for chance in chances.tolist()]
        self._graphs: dict[tuple[str, int], Any] = {}

    def gate(self) -> Gate:
        """Nested at 8 bits against the model's own logits, at full size: roundings of weights and of bf16 only."""
        with torch.no_grad():
            expected = self.model(self.prompt[None], logits_to_keep=1).logits[0, -1].float().cpu()
        return Gate(f"{self.name} at 8 bits", relative(stepped(self.nested, self.prompt, 8), expected), 0.1)

    def names(self) -> list[str]:
        """All arms; graphs only where there are any."""
        graphs = ["16 bits, CUDA graph"] if self.machine.is_card else []
        return ["16 bits, transformers", *graphs, "8 bits", "4 bits", f"adaptive {MEAN_BITS}"]

    def run(self, arm: str) -> int:
        """Decode one round and wait for it.

        Args:
            arm: One of :meth:`names`.

        Returns:
            Tokens decoded.
        """
        if arm.endswith("transformers"):
            n = self.n_tokens
            ones = torch.ones_like(self.prompt)[None]
            self.model.generate(
                self.prompt[None],
                attention_mask=ones,
                max_new_tokens=n,
                min_new_tokens=n,
                do_sample=False,
                pad_token_id=0,
            )
        else:
            decoder = self.dense if arm.startswith("16") else self.nested
            decoder.position.fill_(PROMPT)
            for bits in self.plan if arm.startswith("adaptive") else [int(arm.split()[0])] * self.n_tokens:
                self._step(decoder, bits)()
        self.machine.wait()
        return self.n_tokens

    def _step(self, decoder: StaticDecoder, bits: int) -> Any:
        key = ("dense" if decoder is self.dense else "nested", bits)
        if key not in self._graphs:
            kept = decoder.position.clone(), decoder.token.clone()
            self._graphs[key] = self.machine.replayed(lambda: decoder.step(bits))
            decoder.position.copy_(kept[0])
            decoder.token.copy_(kept[1])
        return self._graphs[key]


def allocated(machine: Machine, *, reset: bool = False) -> tuple[int, int]:
    """Bytes in use and their peak on a card; zeros on a CPU.

    Args:
        machine: Where.
        reset: Whether a new peak begins.
    """
    if not machine.is_card:
        return 0, 0
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()


def decode_records(arms: Arms, rounds: int) -> Iterator[dict[str, Any]]:
    """Tokens a second of every arm, in turns, and their ratios.

    Args:
        arms: Of one model.
        rounds: How often each runs.
    """
    names = arms.names()
    for name in names:
        arms.run(name)  # compile, capture, warm up
    speeds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            speeds[name].append(arms.n_tokens / arms.machine.seconds(lambda name=name: arms.run(name)))
    for name in names:
        ratios = {f"over {base}": ratio(speeds[name], speeds[base]) for base in names[:2] if base.startswith("16")}
        yield {
            "record": "decode",
            "model": arms.name,
            "arm": name,
            "new_tokens": arms.n_tokens,
            "tokens_per_s": interval(speeds[name]),
            **ratios,
        }


def memory_records(arms: Arms) -> Iterator[dict[str, Any]]:
    """Bytes of weights that stay, and the peak while the nested copy was made.

    Args:
        arms: Of one model.
    """
    dense, nested = arms.dense.weight_bytes(), arms.nested.weight_bytes()
    counted = {"record": "memory", "model": arms.name, "weights_16_bits": dense, "weights_nested": nested}
    measured: dict[str, Any] = {"allocated": arms.allocated, "building_peak_above_16_bits": arms.building_peak}
    if not arms.machine.is_card:
        measured = {"unavailable": "no allocator counts on a CPU"}
    yield counted | {"ratio": nested / dense} | measured


def energy_records(arms: Arms, counter: EnergyCounter, seconds: float) -> Iterator[dict[str, Any]]:
    """Joules a token of every arm over windows of some seconds, total and with the idle power taken off.

    Args:
        arms: Of one model.
        counter: The driver's.
        seconds: Length of a window.
    """
    if counter.why_none:
        yield {"record": "energy", "model": arms.name, "unavailable": counter.why_none}
        return
    idle = counter.over(lambda: time.sleep(0.5) or 0, seconds)
    idle_w = idle["joules"] / idle["seconds"]
    for name in arms.names():
        used = counter.over(lambda name=name: arms.run(name), seconds)
        extra = used["joules"] - idle_w * used["seconds"]
        yield {
            "record": "energy",
            "model": arms.name,
            "arm": name,
            "source": "nvml-total-energy",
            "window_s": used["seconds"],
            "tokens": used["units"],
            "idle_w": idle_w,
            "joules_per_token": used["joules"] / used["units"],
            "joules_per_token_above_idle": extra / used["units"],
        }


def prefill_records(arms: Arms, lengths: Sequence[int], rounds: int) -> Iterator[dict[str, Any]]:
    """Prompt tokens a second: transformers, dense and nested weights, in turns.

    Args:
        arms: Of one model.
        lengths: Tokens of the prompts.
        rounds: How often each runs.
    """
    for length in lengths:
        tokens = arms.prompt.repeat(-(-length // PROMPT))[:length]
        dense, nested = arms.dense.with_room(length), arms.nested.with_room(length)
        calls = {
            "16 bits, transformers": lambda tokens=tokens: arms.model(tokens[None], logits_to_keep=1),
            "16 bits": lambda tokens=tokens, dense=dense: dense.prefill(tokens, 16),
            "8 bits": lambda tokens=tokens, nested=nested: nested.prefill(tokens, 8),
            "4 bits": lambda tokens=tokens, nested=nested: nested.prefill(tokens, 4),
        }
        speeds: dict[str, list[float]] = {name: [] for name in calls}
        with torch.no_grad():
            for turn in range(rounds + 1):  # the first one warms up
                for name, call in calls.items():
                    speed = length / arms.machine.seconds(call)
                    if turn:
                        speeds[name].append(speed)
        for name, found in speeds.items():
            over = ratio(found, speeds["16 bits, transformers"])
            record = {"record": "prefill", "model": arms.name, "arm": name, "tokens": length}
            yield record | {"tokens_per_s": interval(found), "over 16 bits, transformers": over}


def speed_records(machine: Machine, ends_s: float, operations: Sequence[str]) -> Iterator[dict[str, Any]]:
    """All that is measured once the gates are green, as long as there is time.

    Args:
        machine: Where.
        ends_s: When to begin nothing more, by ``time.perf_counter``.
        operations: Whose gates were green; others have no speed.
    """
    rounds = 12 if machine.is_card else 2
    ceiling = copy_ceiling(machine)
    yield {"record": "copy", **ceiling}
    reach = ceiling["gb_per_s"]["mean"]
    if "nested_linear" in operations:
        yield from linear_records(machine, reach, rounds)
    if "nested_linear_mixed" in operations:
        yield from mixed_records(machine, rounds)
    if "norm_quantize" in operations:
        yield from norm_records(machine, reach, rounds)
    if "paged_attention" in operations:
        yield from attention_records(machine, reach, rounds)
    if not {"nested_linear", "nested_pack"} <= set(operations):
        return
    counter = EnergyCounter(machine)
    for name in MODELS:
        if time.perf_counter() > ends_s:
            yield {"record": "skipped", "model": name, "reason": "the time is used up: give more with --budget"}
            continue
        arms = Arms(machine, name, 128 if machine.is_card else 4)
        gate = arms.gate()
        yield gate_record(gate)
        if not gate.is_green:
            yield {"record": "refused", "model": name, "reason": f"{gate.name}: error {gate.error:.1e}"}
            continue
        yield from decode_records(arms, 8 if machine.is_card else 2)
        yield from memory_records(arms)
        yield from energy_records(arms, counter, WINDOW_S)
        yield from prefill_records(arms, (512, 2048) if machine.is_card else (70,), 6 if machine.is_card else 2)
        del arms


def gate_record(gate: Gate) -> dict[str, Any]:
    """A gate as a line."""
    # An error that is not finite is no JSON number.
    error = gate.error if gate.error < float("inf") else None
    return {"record": "gate", "gate": gate.name, "error": error, "bound": gate.bound, "is_green": gate.is_green}


def plant(operation: str) -> None:
    """Make a kernel wrong by a tenth of a percent, to see that the suite then prints no speed.

    Args:
        operation: Key of ``GATES``.
    """
    import importlib

    module = importlib.import_module(f"tapwb_kernels.{operation.removesuffix('_mixed')}.triton")
    name = {"nested_pack": "pack"}.get(operation, operation)
    right = getattr(module, name)

    def wrong(*args: Any, **kwargs: Any) -> Any:
        result = right(*args, **kwargs)
        if isinstance(result, torch.Tensor):
            return result * 1.001
        first = result[0]
        return (first ^ 1 if first.dtype == torch.uint8 else first + 1, *result[1:])

    setattr(module, name, wrong)


def records(machine: Machine, operations: Sequence[str], ends_s: float) -> Iterator[dict[str, Any]]:
    """Gates first, and speeds only if all of them are green.

    Args:
        machine: Where.
        operations: Keys of ``GATES``.
        ends_s: When to begin nothing more.
    """
    gates = run_gates(machine.device, operations)
    if "nested_linear" in operations:
        gates += list(model_gates(machine.device))
    yield from map(gate_record, gates)
    red = [gate for gate in gates if not gate.is_green]
    if red:
        named = "; ".join(f"{gate.name}: error {gate.error:.1e}, bound {gate.bound:.1e}" for gate in red[:5])
        yield {
            "record": "refused",
            "reason": f"{len(red)} of {len(gates)} gates are red, so no speed is shown: {named}",
        }
        return
    yield from speed_records(machine, ends_s, operations)


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interpret", action="store_true", help="tiny shapes on a CPU; times mean nothing")
    parser.add_argument("--tune", action="store_true", help="search for launches and write the card's file")
    parser.add_argument("--budget", type=float, default=420.0, help="begin no model after so many seconds (420)")
    parser.add_argument("--operations", nargs="+", choices=GATES, default=list(GATES), help="only these (all)")
    parser.add_argument("--plant-fault", choices=GATES, help="make one kernel wrong and see the suite refuse")
    parser.add_argument("--out", type=Path, help="file of JSON lines (build/gpu-CARD.jsonl)")
    return parser.parse_args(words)


def main(words: Sequence[str]) -> int:
    """Run the suite; the exit status is 1 if it refused to show a speed, 2 if there is no card."""
    asked, started_s = parsed(words), time.perf_counter()
    machine = Machine("cpu" if asked.interpret else "cuda")
    if machine.is_card and not torch.cuda.is_available():
        print("No CUDA card is visible to torch. To see the suite work on a CPU: --interpret", file=sys.stderr)
        return 2
    about = provenance(machine)
    if asked.plant_fault:
        plant(asked.plant_fault)
        about["planted_fault"] = asked.plant_fault
    if asked.tune:
        path = (asked.out or launches.TUNED) / launches.file_name(about["card"])
        found = tune(machine, asked.budget, 24 if machine.is_card else 2)
        launches.write_tuned(path, about["card"], about, found)
        print(f"{len(found)} launches in {path}")
        return 0
    path = asked.out or Path("build") / f"gpu-{launches.file_name(about['card'])}l"
    path.parent.mkdir(parents=True, exist_ok=True)
    status = 0
    with path.open("w", encoding="utf-8") as lines:
        lines.write(json.dumps({"record": "provenance", **about}) + "\n")
        for record in records(machine, asked.operations, started_s + asked.budget):
            lines.write(json.dumps(record) + "\n")
            lines.flush()
            status = 1 if record["record"] == "refused" else status
            if record["record"] != "gate" or not record["is_green"]:
                print(json.dumps(record), flush=True)
        lines.write(json.dumps({"record": "done", "seconds": time.perf_counter() - started_s}) + "\n")
    print(f"{path}: {time.perf_counter() - started_s:.0f} s")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
