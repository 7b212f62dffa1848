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
# # What does a budget buy?
#
# The last notebook asked which tokens matter. This one asks what to do about it: given a **budget**, so many bits
# on average, who gets them, what does that read from memory, and how much of the quality is left? And then the
# question that decides whether any of this is worth the trouble: would the **same bits for everyone** have done as
# well?
#
# Three things can share out a budget: the **tokens** (important ones read more bits), the **layers** (sensitive ones
# are stored and read wider, for every token alike), or both together. Each is drawn beside controls that hold the
# same mean.
#
# It takes under two minutes with two processor cores. Change the values below and run it again.

# %% tags=["parameters"]
model = "smollm2-135m"
prompt = "The Amazon river carries more water than the next seven rivers together. It rises in the Andes of Peru."
dial_means = [4.5, 5.0, 5.5, 6.0, 7.0]
signal = "entropy"
mean_bits = 5.0
means = [4.5, 5.5]
text_characters = 24000
context = 160
windows = 3
with_layers = False
saved = "pareto-smollm2-135m"
seed = 0

# %%
from tapwb.evals.pareto import ParetoSettings
from tapwb.evals.pareto_table import ParetoTable
from tapwb.metrics.statistics import paired_ratio_ci
from tapwb.views.notebook import (
    budget_dial,
    measure_curve,
    measured_where,
    open_engine,
    python_docs_text,
    saved_results,
    show_figure,
    show_table,
)
from tapwb.views.report.study_charts import gain_chart, pareto_chart

engine = open_engine(model, seed=seed)
scored = engine.score(prompt, signal)

# %% [markdown]
# ## The dial
#
# Turn it: each stop is a budget. The tokens are tinted by importance, and the number under each is its bits. Below
# stand the bytes of weights that one token reads on average, and what the same budget would buy if it were shared
# out over the **layers** instead, once and for all tokens: how many of the weights would sit at which width, and
# the perplexity ratio to expect from the measured damage of each layer. (In a printed report the stops are folded:
# open the one you want.)

# %%
budget_dial(engine, scored, dial_means, signal, start=mean_bits if mean_bits in dial_means else None)

# %% [markdown]
# Two things to notice. Memory does not change from stop to stop: all tokens share one stored copy of 8 bits, and
# a smaller budget **reads** less of it. And the planner prefers neighbouring widths: damage falls about 3.5 times
# a bit, so a token at 4 bits loses more than one at 8 bits wins.
#
# ## Measured: quality against the mean
#
# Now every plan really runs, on some windows of Python's documentation, against the weights as they were loaded. The
# damage is the **KL divergence** of the predictions, in nats per token: 0 is no change, lower is better.
#
# | family | who gets more bits | what it answers |
# |---|---|---|
# | uniform | everyone the same | what everybody else does |
# | floors | the first tokens only | how much of a gain is the protection of the start |
# | random | tokens by chance | is the signal worth anything? |
# | shuffled | the signal's scores on the wrong tokens | is it the signal, or only the mixture of widths? |
# | adaptive | tokens by the signal | the idea of this program |
# | oracle | tokens by their true damage on this text | the most that choosing tokens can give |
# | layers | sensitive layers, measured on another text | the static way |
# | layers+tokens | both | do they add up? |
#
# Measuring the layers takes minutes the first time, so it is off here (`with_layers`), and read from the saved table
# further down.

# %%
text = python_docs_text(text_characters)
settings = ParetoSettings(
    means=tuple(means),
    signals=(signal,),
    context=context,
    windows=windows,
    with_layers=with_layers,
    group_size=64,
    seed=seed,
)
live = measure_curve(model, text, settings)
measured = live.to_json()
points = measured["points"]
show_figure(pareto_chart(points, f"Measured now: {model}, {live.setup['windows']} windows of {context} tokens"))

# %% [markdown]
# The **adaptivity gain** puts a plan on the line through the uniform widths: it is the uniform width that would do
# as much damage, less the mean bits that the plan really used. Positive means that choosing paid; +0.2 means that
# the plan is as good as uniform with 0.2 bits more. The **oracle share** is that gain over the oracle's. Intervals
# come from resampling whole windows.


# %%
def gain_rows(points):
    """One row per plan, the gain with its interval."""
    rows = []
    for point in points:
        gain, share = point.get("adaptivity_gain_bits", {}), point.get("oracle_share", {})
        ends = gain.get("ci95")
        rows.append(
            [
                point["precision"],
                point["family"],
                point["mean_bits"],
                point["kl_mean"],
                gain.get("value"),
                f"{ends[0]:+.3f} to {ends[1]:+.3f}" if ends else "–",
                f"{share['value']:.0%}" if "value" in share else "–",
                len(point["windows"]["kl"]),
            ]
        )
    return rows


COLUMNS = ["precision", "family", "mean bits", "KL, nats", "gain, bits", "95 % interval", "of the oracle", "windows"]
show_table(COLUMNS, gain_rows(points), title="Measured now; source: KL to the weights as loaded")

# %% [markdown]
# ## The larger table
#
# What you just measured is small on purpose: the interval shows how little a few windows say. The same measurement
# with layers and on three kinds of text is kept with the program. It was made earlier, on the machine and the date
# named below each figure; nothing in it was measured by this run.

# %%
records = saved_results(saved)
tables = [ParetoTable.from_json(record) for record in records]
saved_points = [table.to_json()["points"] for table in tables]
show_figure(pareto_chart(saved_points[0], f"Saved: {records[0]['text']}"))

# %%
show_table(
    ["text", "windows", "tokens each", "measured"],
    [[r["text"], r["setup"]["windows"], r["setup"]["context"], measured_where(r)] for r in records],
    title="What the saved tables rest on",
)

# %%
show_figure(gain_chart(saved_points[0], f"Gains with intervals, saved: {records[0]['text']}"))

# %%
wanted = {"adaptive", "random", "shuffled", "floors", "oracle", "layers", "layers+tokens"}
show_table(
    ["text", *COLUMNS],
    [
        [record["text"].split(",")[0], *row]
        for record, points in zip(records, saved_points, strict=True)
        for row in gain_rows(points)
        if row[1] in wanted and abs(row[2] - mean_bits) < 0.75
    ],
    title=f"Saved tables, plans within 0.75 bits of {mean_bits:g}",
)

# %% [markdown]
# ## Reading it
#
# Answers drawn from the saved tables, each with how many of the texts agree. Two plans are compared
# window by window at the same mean (KL over KL), and a yes counts only where the whole 95 % interval says so.


# %%
def share_of_texts(answers):
    """How many of the saved texts say yes, out of those that can tell."""
    known = [answer for answer in answers if answer is not None]
    return f"{sum(known)} of {len(known)} texts" if known else "not in the saved tables"


def beats(table, family, against):
    """Whether one family does less damage than another at every target both ran at; windows are compared in pairs."""
    ratios = [
        paired_ratio_ci(other.kl, point.kl, seed=seed)
        for point in table.points
        for other in table.points
        if (point.family, other.family) == (family, against) and point.target_bits == other.target_bits
    ]
    return all(ratio.high < 1 for ratio in ratios) if ratios else None


def gains(points, family):
    """Whether every plan of a family has an interval above zero."""
    ends = [point["adaptivity_gain_bits"].get("ci95") for point in points if point["family"] == family]
    known = [pair for pair in ends if pair]
    return all(low > 0 for low, _ in known) if known else None


def pairs(family, against):
    """The comparison on every text."""
    return share_of_texts([beats(table, family, against) for table in tables])


def alone(family):
    """The gain over uniform on every text."""
    return share_of_texts([gains(points, family) for points in saved_points])


show_table(
    ["question", "yes, beyond the intervals"],
    [
        ["Does choosing tokens beat uniform?", alone("adaptive")],
        ["Does it beat tokens chosen at random?", pairs("adaptive", "random")],
        ["Does it beat its own scores, shuffled?", pairs("adaptive", "shuffled")],
        ["Does choosing layers beat uniform?", alone("layers")],
        ["Does choosing layers beat choosing tokens?", pairs("layers", "adaptive")],
        ["Does choosing both beat layers alone?", pairs("layers+tokens", "layers")],
    ],
    title="From the saved tables",
)

# %% [markdown]
# **What the controls mean.** A plan that beats uniform has not yet shown that its signal is worth anything: mixing
# neighbouring widths and protecting the first tokens can beat the line through the uniform widths with no signal at
# all, because a token's damage comes in part through the tokens it looks back at. What the signal is worth is the
# distance to *random* and *shuffled*, which have the same mixture. What could still be had is the distance to the
# *oracle*.
#
# **What would make you choose uniform.** If the interval of the gain holds zero; if the plan does not beat random; if
# your kernels cannot read a different width per token in one step (then a mixed batch costs as much as its widest
# token); or if a target of 8 bits is within reach, where nothing is lost that anyone could win back. And if the
# layers alone give nearly everything, take the layers: they need no signal, no extra pass, and no token is treated
# differently from another.
#
# The weights of the default model had been 4-bit numbers once before they were published; the damage is added damage.
# `tapwb pareto --text-file YOURS --out curve.json` measures your model on your text.
