"""Use cases of the source documents as starting points: data centre, research, edge.

A preset is a configuration with a reason; everything in it can be changed afterwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tapwb.core.registry import Registry
from tapwb.engine.config import PrecisionMode, TAPConfig


@dataclass(frozen=True, slots=True)
class Preset:
    """A use case and the settings it starts from.

    Attributes:
        title: Name for people.
        reason: Why these settings fit, in one sentence.
        config: Settings of an engine.
    """

    title: str
    reason: str
    config: TAPConfig


presets: Registry[Preset] = Registry("preset")

presets.add(
    "datacenter",
    Preset(
        "Data centre",
        "Many users share one copy of the weights, so quality decides: near lossless weights, and the cache, which "
        "every user has for himself, at 8 bits.",
        TAPConfig(precision_mode=PrecisionMode.UNIFORM, mean_bits=8, kv_bits=8),
    ),
)
presets.add(
    "research",
    Preset(
        "Research",
        "Shows where precision matters: budget planner over neighbouring levels, reference weights kept beside the "
        "nested ones for comparisons, cache untouched.",
        TAPConfig(precision_mode=PrecisionMode.ADAPTIVE, mean_bits=5.5, kv_bits=16),
    ),
)
presets.add(
    "edge",
    Preset(
        "Edge and mobile",
        "Memory decides: fewer bits read per token, a 4-bit cache, no reference weights beside the nested ones.",
        TAPConfig(
            precision_mode=PrecisionMode.ADAPTIVE,
            mean_bits=4.5,
            kv_bits=4,
            memory_efficient_mode=True,
            time_reference=False,
        ),
    ),
)


def preset_names() -> Sequence[str]:
    """Names of all presets, in the order the source documents list the use cases."""
    return ("datacenter", "research", "edge")
