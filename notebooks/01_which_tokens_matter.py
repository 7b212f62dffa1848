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
# # Which tokens matter, and does it pay to know?
#
# The idea of token-adaptive precision is: important tokens get more bits, the rest fewer. That can only work if a
# cheap **signal** finds the tokens that low precision really hurts. This notebook puts the signals side by side,
# compares each with the truth, and then asks the question that decides: at the same average number of bits, does
# giving bits by the signal beat giving them **at random**?
#
# The text comes with Python itself (`pydoc_data.topics`), so nothing is downloaded.
#
# Seed features: S1.1

# %% tags=["parameters"]
model = "smollm2-135m"
text_characters = 24000
context = 256
windows = 4
mean_bits = 5.5
seed = 0

# %%
from tapwb.views.notebook import open_engine, python_docs_text, show_figure, show_table, show_tokens
from tapwb.views.report.charts import correlation_chart, quality_chart

engine = open_engine(model, seed=seed)
text = python_docs_text(text_characters)

# %% [markdown]
# ## The signals, side by side
#
# | signal | asks | known before the token is processed? |
# |---|---|---|
# | entropy | how unsure is the model here, after a quick 4-bit pass? | no |
# | entropy_prev | how unsure was it one step before? | yes |
# | attention | how much do later tokens look back at this one? | no |
# | hidden_norm | how large is the token's inner state? | no |
# | position | is it near the start or the end? | yes |
# | token_id | is it a rare word, a number, a special token? | yes |
# | surprisal | how unexpected was this very token? | no |
#
# And the truth to compare with: the **oracle** runs every token at both the low and the high precision and takes
# the divergence between the two predictions (KL, in nats). It is far too expensive for use; that is not its
# purpose.

# %%
signals = ["entropy", "entropy_prev", "attention", "hidden_norm", "position", "token_id", "surprisal", "oracle"]
token_ids = engine.tokenize(text)[:, :context]
scored = engine.score(token_ids, signals)

# %%
from tapwb.importance import rank_correlation

parts = scored.importance.parts
correlation = {a: {b: rank_correlation(parts[a], parts[b]) for b in parts} for a in parts}
show_table(
    ["signal", "rank correlation with the oracle"],
    sorted(
        ([name, correlation[name]["oracle"]] for name in signals if name != "oracle"),
        key=lambda row: -float(row[1] or -2),
    ),
    title=f"How well each signal finds the tokens that low precision hurts ({token_ids.shape[1]} tokens)",
)

# %% [markdown]
# A rank correlation of 1 would find the hurt tokens exactly, 0 is chance. The square below shows how far the
# signals agree with each other.

# %%
show_figure(correlation_chart(correlation))

# %% [markdown]
# The first tokens, by entropy and by the oracle. Tint is importance, underline and number are the bits of a plan.

# %%
shown = engine.score(token_ids[:, :48], ["entropy", "oracle"])
show_tokens(engine, shown, engine.plan(shown, f"adaptive:{mean_bits}:entropy"), signal="entropy")

# %%
show_tokens(engine, shown, engine.plan(shown, f"oracle:{mean_bits}"), signal="oracle")

# %% [markdown]
# ## The control table
#
# Six ways to spend about the same number of bits, on the same windows of text:
#
# - **adaptive**: bits by entropy.
# - **random**: the same planner, fed with chance. If adaptive does not beat this, the signal is worth nothing.
# - **shuffled**: the entropy scores themselves, on the wrong tokens. It has the same mix of bits as adaptive.
# - **oracle**: bits by the damage that the lowest precision does to each token, as measured on this very text.
# - **5** and **6**: every token the same. What everybody else does.
#
# KL is the mean divergence from the 16-bit model's predictions, in nats: lower is better. The interval belongs to
# the perplexity ratio, over windows.

# %%
from tapwb.views.notebook import compare_precisions

requests = [
    f"adaptive:{mean_bits}:entropy",
    f"random:{mean_bits}",
    f"shuffled:{mean_bits}:entropy",
    f"oracle:{mean_bits}",
    "5",
    "6",
]
table = compare_precisions(model, text, requests, context=context, windows=windows, seed=seed)
rows = table.to_json()["results"]
show_table(
    [
        "precision",
        "mean bits",
        "KL, nats",
        "perplexity",
        "ratio to 16 bits",
        "95 % interval",
        "same top-1",
        "predictions",
    ],
    [
        [
            row["precision"],
            row["mean_bits"],
            row["kl_mean"],
            row["perplexity"],
            row["perplexity_ratio"],
            "{:.3f} to {:.3f}".format(*row["ci95"]) if isinstance(row["ci95"], list) else row["ci95"]["unavailable"],
            f"{row['top1_agreement']:.1%}",
            row["n_predictions"],
        ]
        for row in rows
    ],
    title=f"{table.windows} windows of {table.context} tokens, groups of {table.group_size}",
)

# %%
show_figure(quality_chart(rows))

# %% [markdown]
# ## Reading it

# %%
kl = {row["precision"].partition(":")[0]: row["kl_mean"] for row in rows}
show_table(
    ["question", "answer"],
    [
        [
            "Is chance worse than the signal?",
            f"{'yes' if kl['random'] > kl['adaptive'] else 'NO'}: its KL is {kl['random'] / kl['adaptive']:.2f} times",
        ],
        [
            "Are the signal's scores on the wrong tokens worse?",
            f"{'yes' if kl['shuffled'] > kl['adaptive'] else 'NO'}: {kl['shuffled'] / kl['adaptive']:.2f} times",
        ],
        [
            "And with the measured damage itself as the signal?",
            f"the oracle's KL is {kl['oracle'] / kl['adaptive']:.2f} of the signal's",
        ],
        [
            "How does it compare with the same bits for all?",
            f"5 bits: {kl['5'] / kl['adaptive']:.2f} times its KL; 6 bits: {kl['6'] / kl['adaptive']:.2f} times",
        ],
    ],
)

# %% [markdown]
# If the first two answers are yes, the signal carries information about the damage. Whether that is worth having
# is the last line: damage falls about 3.5 times for each bit, so neighbouring widths (4, 5, 6) can be mixed with
# profit, and widths far apart (4 and 8) cannot, whatever the signal. A mean of 5.5 bits stands between the two
# uniform rows; the gain is how far below the line between them its point lies in the figure.
#
# The weights of the default model had been 4-bit numbers once before they were published, so this is added
# damage, not damage from the originals. And it is one small model and one text. The program exists so that you
# can ask the same of yours: change `model` at the top.
