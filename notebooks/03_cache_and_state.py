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
# # What does the cache cost?
#
# A transformer keeps two vectors per layer of every token it has read: the **key** and the **value**. That is the
# cache. It grows with the text, and on long texts it is read more than the weights are. And it is the one place
# where bits per **token** save real memory: weights are shared by all tokens, but a cached vector belongs to its
# token alone.
#
# This notebook counts the bytes on the tensors, looks into an adaptive cache page by page, and measures what the
# saved bytes cost, beside uniform widths and controls. It takes under two minutes with two processor cores.
#
# Models that keep a **state** instead of keys and values have nothing that grows; how few bits a state can have is the
# last question here.
#
# Seed features: S1.16

# %% tags=["parameters"]
model = "smollm2-135m"
text_characters = 24000
lengths = [256, 1024, 2048]
kv = "adaptive:3.5:received"
mean_bits = 3.5
picture_tokens = 384
context = 384
windows = 2
uniform = [4]
saved = "kv-smollm2-135m"
state_steps = 512
state_seeds = 3
seed = 0

# %%
from tapwb.core.units import format_bytes
from tapwb.evals.kv_pages import cache_sizes
from tapwb.views.notebook import (
    measure_caches,
    measure_states,
    measured_where,
    open_engine,
    picture_of_cache,
    python_docs_text,
    saved_results,
    show_figure,
    show_table,
)
from tapwb.views.report.study_charts import cache_chart, page_chart

engine = open_engine(model, seed=seed)
text = python_docs_text(text_characters)

# %% [markdown]
# ## Bytes by width
#
# Bytes of a cache that holds so many tokens, counted on its tensors with scales and bookkeeping. A cache of "4 bits"
# is not a quarter of one of 16: the first four tokens and the most recent ones stay at 16 bits, and every key and value
# has a scale. The longer the text, the less that weighs.

# %%
sizes = cache_sizes(model, lengths)
show_table(
    ["cache", *(f"{n:,} tokens" for n in lengths), f"a token, of {lengths[-1]:,}"],
    [
        [
            f"{kind} bits",
            *(format_bytes(size.n_bytes) for size in sizes if size.kv == kind),
            f"{next(s.bytes_per_token for s in sizes if (s.kv, s.n_tokens) == (kind, lengths[-1])):,.0f} bytes",
        ]
        for kind in dict.fromkeys(size.kv for size in sizes)
    ],
    title=f"{engine.loaded.info.title}: bytes of its cache, counted on tensors",
)

# %% [markdown]
# ## A look inside
#
# The adaptive cache works in **pages** of 64 tokens. A page is sealed at 8 bits when it leaves the recent window. It
# waits there for four more pages, while the attention that its tokens **receive** is counted. Then each token stays at
# 8 bits, or goes down to 4, 3 or 2 by dropping the low bits of the codes it has: nothing is quantized twice. Keys and
# values choose apart, and so does every layer.
#
# Each square below is one token's key in one layer. Dark is many bits. The left edge (the first four tokens, which
# these models lean on) and the right edge (recent tokens) stay at 16.

# %%
picture = picture_of_cache(model, text, kv, picture_tokens)
show_figure(page_chart(picture.key_bits, f"Bits of the keys after {picture_tokens} tokens, {kv}"))

# %%
show_table(
    ["bits", "share of keys and values"],
    [[f"{bits}", f"{share:.1%}"] for bits, share in picture.histogram().items()],
    title=f"{format_bytes(picture.n_bytes)} in all, counted on tensors; pages of {picture.page_tokens} tokens",
)

# %% [markdown]
# ## Measured: bytes and damage
#
# The text is fed page by page, so that later tokens really read what was sealed. The weights stay as they were loaded;
# only the cache differs. The controls hold the same mean: **even** gives every token the same mixture, **random** gives
# bits by chance, **shuffled** gives the right bits to the wrong tokens of the page.

# %%
table = measure_caches(model, text, mean_bits=mean_bits, context=context, windows=windows, uniform=uniform, seed=seed)
rows = table.to_json()["rows"]
show_figure(cache_chart(rows, f"Measured now: {model}, {table.windows} windows of {table.context} tokens"))


# %%
def cache_rows(rows):
    """One row per cache; a peer that could not run says why."""
    out = []
    for row in rows:
        if "unavailable" in row:
            out.append([row["name"], row["kind"], *["–"] * 5, row["unavailable"]])
            continue
        ends = row["ci95"]
        out.append(
            [
                row["name"],
                row["kind"],
                format_bytes(row["cache_bytes"]),
                f"{row['bytes_ratio']:.3f}",
                f"{row['perplexity_ratio']:.4f}",
                f"{ends[0]:.4f} to {ends[1]:.4f}" if isinstance(ends, list) else ends["unavailable"],
                f"{row['kl_mean']:.5f}",
                f"{row['n_predictions']:,}",
            ]
        )
    return out


COLUMNS = ["cache", "kind", "bytes", "of 16 bits", "perplexity ratio", "95 % interval", "KL, nats", "predictions"]
show_table(COLUMNS, cache_rows(rows), title="Measured now; bytes counted on tensors at the end of a window")

# %%
show_table(
    ["the adaptive cache over", "ratio", "95 % interval", "windows"],
    [
        [
            ratio["name"],
            ratio["ratio"] if not isinstance(ratio["ratio"], dict) else ratio["ratio"]["unavailable"],
            "{:.3f} to {:.3f}".format(*ratio["ci95"]) if isinstance(ratio["ci95"], list | tuple) else "–",
            ratio["n"],
        ]
        for ratio in table.to_json()["ratios"]
    ],
    title="Below 1 the adaptive cache is better",
)

# %% [markdown]
# At this length the 16-bit edges still make up a good part of the cache, and pages that wait stand at 8 bits, so the
# share of bytes is worse than on long texts; a row with fewer bytes and a row with more are not rivals yet. Perplexity
# moves so little that two windows can hardly tell the caches apart; the KL divergence can.
#
# ## At 4,096 tokens
#
# The same measurement on long windows, with the caches that come with transformers beside it. It was made earlier,
# where and when the last line says; this run measured none of it.

# %%
records = saved_results(saved)
show_figure(
    cache_chart(records[0]["rows"], f"Saved: {records[0]['question']}, windows of {records[0]['context']:,} tokens")
)

# %%
show_table(
    ["text", *COLUMNS],
    [[record["text_file"].partition(" ")[0], *row] for record in records for row in cache_rows(record["rows"])],
    title="Saved: windows of 4,096 tokens",
)

# %%
show_table(
    ["question", "windows", "tokens each", "measured"],
    [[r["question"], r["windows"], r["context"], measured_where(r)] for r in records],
    title="What the saved tables rest on",
)

# %% [markdown]
# ## And a state?
#
# Models without attention keep a **state** of one size instead of a cache. It has no tokens to give bits to: each new
# token is added to what is there, and a rounding error stays for as long as the state remembers. So two other questions
# count. **How is the state kept?** At 8 bits to the nearest, every increment below half a step is lost, and a slow sum
# comes to a stop. Keeping the rounding error beside it (`int8+4`) and writing the state once in sixteen tokens cures
# that. **What is added to it?** The vectors that a token adds are its own, and they can have the token's bits.
#
# Random sequences with known decays, against the exact recurrence in fp64.

# %%
states = measure_states(steps=state_steps, seeds=state_seeds, seed=seed).to_json()
by_kind = {kind: [r for r in states["rows"] if r["kind"] == kind] for kind in ("drift", "signal", "updates")}
show_table(
    ["state", "bits a number", "output error", "95 % interval"],
    [
        [
            row["name"],
            f"{row['bits_per_number']:.1f}",
            f"{row['relative_error']['value']:.4f}",
            "{:.4f} to {:.4f}".format(*row["relative_error"]["ci95"]),
        ]
        for row in by_kind["drift"]
    ],
    title=f"After {states['steps']} tokens, {states['seeds']} sequences",
)

# %%
show_table(
    ["state", "share of a slow sum that is left"],
    [[row["name"], f"{row['recovered_share']:.1%}"] for row in by_kind["signal"]],
    title=f"A sum of {by_kind['signal'][0]['increments']:,} equal increments",
)

# %%
show_table(
    ["bits of updates", "mean", "output error", "95 % interval"],
    [
        [
            row["choice"],
            f"{row['mean_bits']:.1f}",
            f"{row['relative_error']['value']:.4f}",
            "{:.4f} to {:.4f}".format(*row["relative_error"]["ci95"]),
        ]
        for row in by_kind["updates"]
    ],
    title="Equal, by how much a token writes, at random, the wrong way round",
)

# %% [markdown]
# ## Reading it
#
# Hold the three things apart:
#
# - **Bytes** are the same for the adaptive cache and its controls: the mean decides, not who gets the bits.
# - **KL** tells whether the choice of tokens is right. It reacts to any change of the predictions, also to those
#   that do not hurt.
# - **Perplexity** tells whether it mattered. Differences of a tenth of a percent are within the noise of a few windows.
#
# What would make you choose a uniform 4 bits: a text of some hundred tokens (nothing to save), a model whose attention
# this program cannot replace (received attention must be seen), or the wish to have one number to explain. What would
# make you choose 16: a text shorter than the recent window, where nothing is sealed at all.
#
# On the command line: `tapwb run --kv adaptive:3.5:received`, and
# `tapwb bench kv --text-file YOURS --peers quanto,hqq`.
