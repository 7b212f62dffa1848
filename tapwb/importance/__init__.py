"""Stage 3: which tokens matter. Facts in, scores in [0, 1] out; no model is run here."""

from tapwb.importance import factors
from tapwb.importance.analyzer import TokenImportance, TokenImportanceAnalyzer, rank_correlation, shuffle
from tapwb.importance.combine import combine
from tapwb.importance.facts import TokenFacts, zipf_log_frequency
from tapwb.importance.normalize import RunningQuantile, rank_in_sequence
from tapwb.importance.signal import entropy_nats, kl_nats, signals
from tapwb.importance.stream import ImportanceStream, StreamState

__all__ = [
    "factors",
    "TokenFacts",
    "zipf_log_frequency",
    "signals",
    "rank_in_sequence",
    "RunningQuantile",
    "combine",
    "shuffle",
    "TokenImportance",
    "TokenImportanceAnalyzer",
    "rank_correlation",
    "ImportanceStream",
    "StreamState",
    "entropy_nats",
    "kl_nats",
]
