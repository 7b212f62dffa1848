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
# # Attention or state, on a long document?
#
# An **attention** model keeps keys and values of every token and looks at all of them for each new one: memory grows
# with the text, and time with its square. A **state-space** model (Mamba), a **retention** model (RetNet) or an RWKV
# carries a state of one size: memory stays, and time grows in a straight line. What such a model cannot do is look
# back: what the state has let go is gone.
#
# Four points in short:
#
# 1. Attention compares **pairs** of tokens; a state **selects**, token by token, what it takes in and what it lets go.
# 2. Attention costs `a + b n + c n²`; a state costs `a + b n`.
# 3. No table of pairs is ever in memory of a state model, and no cache that grows.
# 4. Long range is a matter of what a state of fixed size **can** hold, and of what it was trained to hold.
#
# So three things are measured on the same models and the same text: the **clock**, the **memory**, and whether the
# model still **knows** what it read. The models are about equal in size (1.2 to 1.4 million parameters) and were
# trained here on the same text, in windows of 512 tokens. The document is Python's own manual, which all but three
# chapters they were trained on: what counts below is how a model changes along it, not how well it knows it.
#
# Seed features: S0.1, S0.3, S0.4, S0.6

# %% tags=["parameters"]
models = ["tiny-llama", "tiny-mamba2", "tiny-retnet"]
lengths = [1024, 2048, 4096, 8192]
repeats = 3
needle_distances = [64, 256, 1024]
n_needles = 8
seed = 0

# %%
from tapwb.views.notebook import measure_long_documents, show_figure, show_provenance, show_table
from tapwb.views.report.long_charts import growth_chart, position_chart

table = measure_long_documents(
    models=tuple(models),
    lengths=tuple(lengths),
    repeats=repeats,
    needle_distances=tuple(needle_distances),
    n_needles=n_needles,
    seed=seed,
).to_json()


def interval(value, form="{:.2f} to {:.2f}"):
    """An interval, or why there is none."""
    ci95 = value["ci95"]
    return form.format(*ci95) if isinstance(ci95, list) else f"unavailable ({ci95['unavailable']})"


# %% [markdown]
# ## The clock
#
# Points are medians of readings in turns: in every turn each model reads the same next 512 tokens, so that whatever
# else the machine does falls on all alike. Lines are fitted; where they are dashed nothing was measured.

# %%
show_figure(growth_chart(table["rows"], table["curves"], "Time to read a document"))

# %%
show_table(
    ["from which length on", "tokens", "95 % interval", ""],
    [
        [row["name"], "–", row["unavailable"], ""]
        if "unavailable" in row
        else [
            row["name"],
            f"{row['n_tokens']:,.0f}",
            "{:,.0f} to ".format(row["ci95"][0]) + ("no end" if row["ci95"][1] is None else f"{row['ci95'][1]:,.0f}"),
            "extrapolated" if row["is_extrapolated"] else "within what was measured",
        ]
        for row in table["crossovers"]
    ],
    title="Where a state overtakes attention",
)

# %%
show_table(
    ["ratio", "tokens", "times as long", "95 % interval", "readings"],
    [[r["name"], f"{r['n_tokens']:,}", f"{r['ratio']:.2f}", interval(r), r["n"]] for r in table["ratios"]],
    title="In pairs of readings",
)

# %% [markdown]
# ## The memory
#
# Bytes of cache and states are counted on the tensors. Before a chunk is read, what the cache will need is compared
# with what is free; a reading that would not fit stops there and says so, instead of taking the machine down.

# %%
show_table(
    ["model", "keeps", "tokens", "seconds", "tokens/s", "cache, bytes", "note"],
    [
        [
            row["model"],
            row["keeps"],
            f"{row['n_tokens']:,}",
            *(
                [row["unavailable"], "–", "–"]
                if "unavailable" in row
                else [f"{row['seconds']:.2f}", f"{row['tokens_per_s']:,.0f}", f"{row['cache_bytes']:,}"]
            ),
            "longer than it was trained for" if row["is_beyond_context"] else "",
        ]
        for row in table["rows"]
        if row["kind"] == "reading"
    ],
    title="Measured readings",
)

# %% [markdown]
# ## Does it still know?
#
# **Perplexity by position** shows what length does to a model. An attention model that was trained on 512 tokens is
# lost beyond them, however fast it is read; a state does not know how long ago it began.

# %%
show_figure(position_chart(table["rows"], "Perplexity along the document"))

# %% [markdown]
# **Needles** are facts that are stated once and asked for later: "The secret word of Clara is window." What counts is
# how much likelier the right answer became *because the fact was read*; the control is the same text with another
# fact in its place. Models of this size copy little, so gains are small; the comparison is between distances.

# %%
show_table(
    ["model", "tokens ago", "nats gained", "95 % interval", "needles"],
    [
        [
            row["model"],
            f"{row['distance_tokens']:,}",
            f"{row['gain_nats']['value']:.3f}",
            interval(row["gain_nats"], "{:.3f} to {:.3f}"),
            row["gain_nats"]["n"],
        ]
        for row in table["rows"]
        if row["kind"] == "needle"
    ],
    title="How much of a fact is left",
)

# %% [markdown]
# ## What the source document claims
#
# Its table compares hosted models (one of attention, one of short convolutions and some attention) on tasks of 50,000
# to 200,000 tokens. This is not that comparison: the models here are small and of equal size. The column *here* is
# the ratio of the fitted curves at the same lengths, extrapolated, with the range that the curves' intervals allow.

# %%
show_table(
    ["task", "tokens", "claimed", "models", "here", "range", "source"],
    [
        [
            claim["task"],
            f"{claim['n_tokens']:,}",
            claim["claimed_speedup"],
            claim["models"],
            *(
                [claim["here"]["unavailable"], "–", "–"]
                if "unavailable" in claim["here"]
                else [
                    f"{claim['here']['value']:.1f}x",
                    "{:.1f}x to {:.1f}x".format(*claim["here"]["range"]),
                    claim["here"]["source"],
                ]
            ),
        ]
        for claim in table["claims"]
    ],
    title="Claimed beside the curves of this machine",
)

# %% [markdown]
# ## Which to choose
#
# | the work | rather | because |
# |---|---|---|
# | short prompts, up to the crossing above | attention | it is faster there, and looks back exactly |
# | long documents read once, summaries, streams | a state | time and memory per token stay the same |
# | a fact anywhere in a long text is asked for | attention, within its trained length | a state lets go (needles) |
# | longer than any trained length | neither without a test | perplexity by position tells |
#
# On the command line: `tapwb bench longdoc --models tiny-llama,tiny-mamba2 --text-file YOURS --to 16384`.

# %%
show_provenance()
