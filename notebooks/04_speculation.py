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
# # When does guessing ahead pay?
#
# A language model reads all its weights to write one token. It would read them once to **check** five tokens. So:
# let something cheap guess the next tokens, let the model check all guesses in one pass, and keep those it would have
# written itself. The pass also yields one token of its own, so every round makes progress, and the text is, token for
# token, the text the model would have written alone.
#
# Here the something cheap is close at hand: the **same weights, read at fewer bits** (`self:4`). Nested weights hold
# 4-bit readings of themselves, so a draft costs no second model. The low-bit pass writes keys and values into the same
# cache; they are taken back, and the check writes them anew at 8 bits. Other guessers are the **text itself** (`ngram`:
# what followed these words the last time) and a **separate smaller model** (`draft:ID`).
#
# Whether it pays is a question of three numbers, and this notebook measures them: how many guesses **stand**, what a
# **guess** costs, and what **checking** several tokens costs, both in units of a plain step. It takes under two minutes
# with two processor cores.
#
# Seed features: S3.1, S3.11, S3.16

# %% tags=["parameters"]
model = "smollm2-135m"
prompt = "Bread is made of flour and water. First, the flour and the water are mixed. Then, the"
guessers = ["self:4", "self:5", "ngram"]
depths = [1, 3]
prompts = 4
prompt_tokens = 24
new_tokens = 48
saved = "speculation-smollm2-135m"
seed = 0

# %%
from tapwb.views.notebook import (
    generate,
    measure_guessers,
    measured_where,
    open_engine,
    saved_results,
    show_figure,
    show_run,
    show_table,
    watch_guesses,
)
from tapwb.views.report.study_charts import bars_chart

engine = open_engine(model, seed=seed)

# %% [markdown]
# ## One answer, round by round
#
# Each line is a round: how many tokens were guessed, how many of them stood, and what the answer grew by. The last
# token of every round is the model's own. A round without guesses is a plain step; some are put in between on purpose,
# because they are what the rest is compared with.

# %%
text, metrics, rounds = watch_guesses(engine, prompt, new_tokens, guessers[0])
show_table(
    ["round", "guessed", "stood", "guessing, ms", "checking, ms", "the answer grew by"],
    [
        [number, one.n_drafted, one.n_accepted, f"{1e3 * one.draft_s:.1f}", f"{1e3 * one.verify_s:.1f}", piece]
        for number, (one, piece) in enumerate(rounds, start=1)
    ],
    title=f"{guessers[0]} guesses, {engine.loaded.info.title} at 8 bits checks",
)

# %%
show_run(metrics)

# %% [markdown]
# The text must be the same as without guessing. Not similar: the same.

# %%
alone, _ = generate(engine, prompt, new_tokens, "8")
show_table(["written", "text"], [["one token at a time", alone], [f"with {guessers[0]}", text]])

# %%
show_table(["", ""], [["Are both texts the same?", "yes" if text == alone else "no"]])

# %% [markdown]
# ## Guessers and depths, side by side
#
# Prompts are cut from the texts that come with the program. Every answer is compared with the plain one, token by
# token; if a single one differed, no time would be shown. Plain and guessed answers to a prompt are written abreast, a
# round of the shortest next, and the ratio is taken in pairs. Depth `auto` lets the machine's own clock choose after
# every round, down to not guessing at all.

# %%
table = measure_guessers(
    model,
    guessers=guessers,
    depths=depths,
    n_prompts=prompts,
    prompt_tokens=prompt_tokens,
    new_tokens=new_tokens,
    seed=seed,
)
found = table.to_json()
show_table(
    ["answers that differ from plain decoding", "found", "allowed"],
    [[check["name"].removeprefix("answers that differ: "), check["value"], 0] for check in found["gate"]["checks"]],
    title="The gate" if found["gate"]["met"] else "The gate is not met: no speed is shown",
)


# %%
def value_of(reading, spec):
    """A reading, live or as a saved run keeps it, or a dash where there is none."""
    if isinstance(reading, dict):
        reading = reading.get("value")
    return "–" if reading is None else format(reading, spec)


def cost_rows(record):
    """Why it pays or not: acceptance and costs of every guesser and depth, with the ratio."""
    out = []
    for row, ratio in zip(record["rows"], record["ratios"], strict=True):
        certificate = row["certificate"]
        widest = max((rows for rows in certificate["verify_cost"] if rows.isdigit()), key=int, default=None)
        out.append(
            [
                row["guesser"],
                row["depth"],
                row["n_tokens"] if row["batch"] == 1 else f"{row['n_tokens']} x {row['batch']}",
                value_of(row["acceptance"], ".0%"),
                f"{row['tokens_per_round']:.2f}",
                value_of(certificate["draft_cost"], ".2f"),
                "–" if widest is None else f"{value_of(certificate['verify_cost'][widest], '.2f')} for {widest}",
                f"{ratio['ratio']:.2f}" if not isinstance(ratio["ratio"], dict) else ratio["ratio"]["unavailable"],
                "{:.2f} to {:.2f}".format(*ratio["ci95"]) if isinstance(ratio["ci95"], list | tuple) else "–",
                ratio["n"],
            ]
        )
    return out


COLUMNS = [
    "guesser", "depth", "tokens", "guesses that stood", "tokens a round", "a guess, steps", "checking, steps",
    "times as fast", "95 % interval", "pairs",
]  # fmt: skip
show_table(COLUMNS, cost_rows(found), title="Measured now; costs in plain steps, above 1 is faster")

# %%
names = list(dict.fromkeys(row["guesser"] for row in found["rows"]))
kinds = list(dict.fromkeys(row["depth"] for row in found["rows"]))
places = {(row["guesser"], row["depth"]): ratio for row, ratio in zip(found["rows"], found["ratios"], strict=True)}
show_figure(
    bars_chart(
        names,
        {
            f"depth {kind}": [
                {"value": ratio["ratio"], "ci95": ratio["ci95"]}
                if (ratio := places.get((name, kind))) and not isinstance(ratio["ratio"], dict)
                else {}
                for name in names
            ]
            for kind in kinds
        },
        f"Measured now: {model}, {prompts} prompts",
        "tokens a second over those of plain steps",
    )
)

# %% [markdown]
# ## The certificate
#
# A speedup is not one number: short answers spend most of their time on reading the prompt. With fixed costs of *F*
# plain steps and a steady speedup *s*, an answer of *n* tokens is `S(n) = (F + n) / (F + n / s)` times as fast, and
# half of the gain is reached at `n = F s`. *X* is what only guessing spends: tried depths, and the reading of a draft
# model.

# %%
show_table(
    ["guesser", "depth", "steady s", "F, steps", "S(50)", "S(200)", "S(500)", "crossover, tokens"],
    [
        [
            row["guesser"],
            row["depth"],
            value_of(row["certificate"]["speedup"], ".2f"),
            value_of(row["certificate"]["fixed_tokens"], ".1f"),
            *(value_of(row["certificate"]["speedup_at"][n], ".2f") for n in ("50", "200", "500")),
            value_of(row["certificate"]["crossover_tokens"], ".0f"),
        ]
        for row in found["rows"]
    ],
    title="Certificates; no crossover where guessing is slower at every length",
)

# %%
notes = [[row["guesser"], row["notes"][-1]] for row in found["rows"] if row["notes"]]
show_table(["guesser", "what the clock found"], notes or [["–", "guessing was never turned off"]])

# %% [markdown]
# ## Measured before
#
# The same on more prompts, on repetitive text, at the answer lengths of the source documents (50, 200 and 500 tokens),
# for ten requests together and with calibrated cells; where and when the last table says. This run measured none of it.

# %%
records = saved_results(saved)
show_table(
    ["text", *COLUMNS],
    [[record["question"], *row] for record in records for row in cost_rows(record)],
    title="Saved: answers of several lengths, and batches",
)

# %%
show_table(["question", "measured"], [[r["question"], measured_where(r)] for r in records])

# %% [markdown]
# ## Reading it
#
# With `a` the share of guesses that stand, `c` the cost of a guess and `v` that of checking two tokens, depth 1 pays if
# `(1 + a) / (c + v)` is above 1. The 4-bit reading of a small model costs more than half of its 8-bit reading, because
# the head is read at 8 bits either way; so `a` must be high and `v` near 1. That is why the number of guesses is
# measured and not chosen: on another machine, text or model it comes out differently, and where nothing pays the run
# says so and goes on plainly.
#
# What guessing never changes is the text. When tokens are **sampled**, it never changes the distribution: a guess `x`
# stands with probability `min(1, p(x) / q(x))`, and what replaces a guess that fell is drawn from what `p` has more of
# than `q`.
#
# On the command line: `tapwb run --speculate self`, and `tapwb bench speculation --guessers self:4,ngram`.
