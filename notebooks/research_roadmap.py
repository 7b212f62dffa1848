# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What of the research roadmap is here, and what was measured?
#
# The document that this program starts from ends with a roadmap: five directions of research on token-adaptive
# precision. A roadmap is easily written. This notebook puts each direction beside what the project really holds of
# it: the features that work, read from the ledger; the measurements, read from the saved results; and a small study
# that runs now. What is missing is named.
#
# It takes under two minutes with two processor cores.
#
# Seed features: S1.38

# %% tags=["parameters"]
models = ["smollm2-135m", "tiny-llama"]
text_characters = 12000
context = 192
task_results = "tasks-smollm2-135m"
curve_results = "pareto-smollm2-135m"
seed = 0

# %%
from tapwb.evals.pareto_table import ParetoTable
from tapwb.evals.roadmap import roadmap
from tapwb.views.notebook import (
    measured_where,
    open_engine,
    python_docs_text,
    saved_results,
    show_figure,
    show_table,
)
from tapwb.views.report.study_charts import bars_chart

states = roadmap()
show_table(
    ["direction", "asked for", "features that work", "planned", "saved measurements"],
    [
        [
            state.item.title,
            state.item.asked,
            ", ".join(state.works) or "none",
            ", ".join(state.planned) or "none",
            ", ".join(state.measured) or "none",
        ]
        for state in states
    ],
    title="The five directions",
)

# %%
show_table(["direction", "not here"], [[state.item.title, state.item.missing] for state in states])

# %% [markdown]
# ## Better importance: does learning it help?
#
# The document hopes for reinforcement learning. The damage that few bits do to a token can be **measured**, though, so
# there is nothing to find out by trial: `tapwb train-head` fits a small head to the damage itself. Below, on text that
# the head has not seen: how well it ranks the tokens, and what planning by it gains, beside the oracle's gain.

# %%
curves = [(record, ParetoTable.from_json(record)) for record in saved_results(curve_results)]
rows = []
for record, table in curves:
    ranked = table.correlations.get("learned", {"unavailable": "this table has no learned signal"})
    for point in table.points:
        if point.signal == "learned" and point.family == "adaptive":
            gain = table.gain(point).to_json()
            ends = gain.get("ci95")
            rows.append(
                [
                    record["text"].split(",")[0],
                    point.precision,
                    f"{ranked['value']:.2f}" if "value" in ranked else ranked["unavailable"],
                    gain.get("value", gain.get("unavailable")),
                    f"{ends[0]:+.3f} to {ends[1]:+.3f}" if ends else "–",
                    len(point.kl),
                ]
            )
show_table(
    ["text", "precision", "rank correlation with the damage", "gain, bits", "95 % interval", "windows"],
    rows,
    title=f"Saved; {measured_where(curves[0][0])}",
)

# %% [markdown]
# ## Precision by task
#
# The document states scores of four task sets on large models. None of these models was run here. What was measured is
# the embedded model on the items that could be had, every precision on the same items; the difference to 16 bits is
# paired.

# %%
record = saved_results(task_results)[0]


def reading(row, name):
    """A number and its interval of a saved row, which keeps them under keys of their own."""
    value, ends = row[name], row.get(f"{name}_ci95")
    if isinstance(value, dict):
        return value["unavailable"], "–"
    return f"{value:+.3f}" if name == "difference" else f"{value:.3f}", "{:+.3f} to {:+.3f}".format(*ends)


show_table(
    ["task", "metric", "precision", "mean bits", "items", "score", "less 16 bits", "95 % interval"],
    [
        [
            row["task"],
            row["metric"],
            row["precision"],
            row["mean_bits"],
            row["n"],
            reading(row, "score")[0],
            *reading(row, "difference"),
        ]
        for row in record["results"]
    ],
    title=f"{record['model']}: {measured_where(record)}",
)

# %%
show_table(
    ["model", "task", "base", "TAP", "difference"],
    [[c["model"], c["task"], c["base"], c["tap"], c["difference"]] for c in record["claimed"]],
    title="Claimed by the document, not measured here",
)

# %%
show_table(["task", "why not"], [[name, reason["unavailable"]] for name, reason in record["missing"].items()])

# %% [markdown]
# ## Importance by architecture
#
# The same text through each model in `models`: how far does each signal rank the tokens as their true damage does?
# Name more models to compare families; random test models run, but say nothing about language.

# %%
SIGNALS = ["entropy", "entropy_prev", "attention", "hidden_norm", "position", "token_id", "surprisal"]
from tapwb.importance import rank_correlation

text = python_docs_text(text_characters)
found, sizes = {}, {}
for name in models:
    engine = open_engine(name, seed=seed)
    ids = engine.tokenize(text)[:, :context]
    sizes[name] = f"{engine.loaded.info.title}: {ids.shape[1]} tokens"
    importance = engine.score(ids, [*SIGNALS, "oracle"]).importance.parts
    found[name] = {signal: rank_correlation(importance[signal], importance["oracle"]) for signal in SIGNALS}

show_figure(
    bars_chart(
        SIGNALS,
        {
            name: [{"value": value} if isinstance(value, float) else {} for value in row.values()]
            for name, row in found.items()
        },
        "Rank correlation of each signal with the damage at few bits",
        "Spearman's rank correlation",
    )
)

# %%
show_table(
    ["signal", *(sizes[name] for name in models)],
    [[signal, *(found[name][signal] for name in models)] for signal in SIGNALS],
    title="Spearman's rank correlation, measured now on one window a model, so without an interval",
)

# %% [markdown]
# ## Architectures, frameworks, hardware
#
# Which model families have an adapter that knows their caches and states, which libraries are here, and what this
# machine's kernels can do. `tapwb models list` and `tests/unit/execution/test_integrations.py` hold the proofs.

# %%
from tapwb.execution.integrations import integrations
from tapwb.models.adapters.registry import adapters

show_table(["family", "what is special"], [[name, adapters.entry(name).summary] for name in adapters.names()])

# %%
show_table(
    ["library", "version here", "what works with it"],
    [
        [integrations[name].package, integrations[name].installed, integrations[name].works]
        for name in integrations.names()
    ],
)

# %% [markdown]
# ## Reading it
#
# A direction has a first answer here when a feature of it works **and** a measurement of it is kept. All of it is at
# the size of small models: a first answer is where the research starts, not where it ends.

# %%
show_table(
    ["direction", "a first answer here?"],
    [[state.item.title, "yes" if state.is_answered else "not yet"] for state in states],
    title="From the ledger and the saved results, as they are today",
)
