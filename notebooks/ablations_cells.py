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
# # Which part of the calibrated cells buys what?
#
# Weights are stored once, in 256 cells a group, and read at 8, 6, 5, 4 or 3 bits by keeping the upper bits of the
# cell's number. **Calibration** changes no format; it only chooses better numbers, in four steps that do not need each
# other:
#
# 1. **search**: slide and stretch the cells of every group until all widths together lose least,
# 2. **feedback**: let weights near a cell's edge take the side on which the errors of a row cancel,
# 3. **gain**: raise each output of a layer by the share by which a width shrinks it,
# 4. **bias**: add back to it what the width still loses on average.
#
# How far feedback may move a weight depends on the model: one that loses next to nothing at 8 bits can give some of
# that away for the lower widths (a **reach** of 12 narrow cells), another cannot (a reach of 1). The last row of each
# table takes all steps with the reach that was not chosen.
#
# This notebook takes them apart. Every combination is made and judged on the same windows of text that calibration
# has not seen, so that two rows differ by their cells alone. Then it asks how much the **text** that is calibrated on
# matters: prose, technical English, or half of each, judged on other prose and other technical English.
#
# It takes under five minutes on two busy processor cores with the default model, which was trained for this project
# and never quantized. (It was trained on texts of these kinds, some of these among them: what is held out here is
# held out from calibration.) Any model can be named instead; a larger one takes longer. With `save_to` the tables are
# written as JSON lines, as those in `data/results` were.

# %% tags=["parameters"]
model = "tiny-llama"
bits = [6, 5, 4, 3]
context = 256
windows = 8
calibration_windows = 24
seed = 0
save_to = ""

# %%
from pathlib import Path

from tapwb.evals.cell_ablation import AblationSettings, save_tables
from tapwb.views.notebook import ablate_cells, measured_where, open_engine, saved_results, show_figure, show_table
from tapwb.views.report.study_charts import bars_chart

engine = open_engine(model, seed=seed)
show_table(
    ["", "value"],
    [
        ["model", engine.loaded.info.title],
        ["weights were before", engine.loaded.info.quantized_before or "not quantized"],
        ["columns per group", engine.nested.group_size],
    ],
)

# %%
settings = AblationSettings(
    bits=tuple(bits), context=context, windows=windows, calibration_windows=calibration_windows, seed=seed
)
parts, texts = ablate_cells(model, settings)
if save_to:
    save_tables(Path(save_to), [parts, texts])

# %% [markdown]
# ## The parts
#
# The number is the KL divergence from the weights as loaded, over that of plain rounding at the same width: 1 is no
# gain, 0.5 is half the damage. Whiskers are 95 % intervals over windows, in pairs.

# %%
rows = parts.to_json()["rows"]
names = [name for name in dict.fromkeys(row["parts"] for row in rows) if name != "plain"]
groups = [f"{width} bits" for width in bits]
PARTS = ("search", "feedback", "gain", "bias")
steps = ["+".join(PARTS[: taken + 1]) for taken in range(len(PARTS))]
other_reach = names[-1]


def at(rows, **wanted):
    """The one row that has these values."""
    return next(row for row in rows if all(row[key] == value for key, value in wanted.items()))


show_figure(
    bars_chart(
        groups,
        {name: [at(rows, parts=name, bits=width)["kl_of_plain"] for width in bits] for name in (*steps, other_reach)},
        f"Damage left by one step after another, {model}",
        "KL over that of plain rounding",
    )
)


# %%
def with_interval(reading):
    """A ratio and its interval in one cell."""
    if "value" not in reading:
        return reading["unavailable"]
    ends = reading.get("ci95")
    return f"{reading['value']:.3f} ({ends[0]:.3f} to {ends[1]:.3f})" if ends else f"{reading['value']:.3f}"


show_table(
    ["parts", *groups],
    [[name, *(with_interval(at(rows, parts=name, bits=width)["kl_of_plain"]) for width in bits)] for name in names],
    title="KL over that of plain rounding (95 % interval over windows)",
)

# %%
show_table(
    ["parts", "bits", "KL, nats", "perplexity ratio", "95 % interval", "windows"],
    [
        [
            row["parts"],
            f"{row['bits']}",
            f"{row['kl_mean']:.5f}",
            f"{row['perplexity_ratio']:.4f}",
            "{:.4f} to {:.4f}".format(*row["ci95"]) if isinstance(row["ci95"], list) else row["ci95"]["unavailable"],
            len(row["windows"]["kl"]),
        ]
        for row in rows
        if row["parts"] in ("plain", *steps, other_reach)
    ],
    title="One step after another, plain first; judged on prose that calibration did not see",
)

# %% [markdown]
# ## What each part adds to the others
#
# Two ways to ask for the worth of a part: what it buys **alone**, and what is lost when it is **left out** of all
# four. Where the second is much smaller than the first, the others do the same work.

# %%
everything = "+".join(PARTS)


def share(name, width):
    """Damage left, or nothing where it could not be told."""
    return at(rows, parts=name, bits=width)["kl_of_plain"].get("value")


def change(top, bottom):
    """By how much damage changes between two, in percent."""
    return "–" if top is None or not bottom else f"{top / bottom - 1:+.1%}"


show_table(
    ["part", "asked", *groups],
    [
        row
        for part in PARTS
        for row in (
            [part, "alone", *(change(share(part, width), 1.0) for width in bits)],
            [
                part,
                "added last",
                *(
                    change(share(everything, width), share("+".join(p for p in PARTS if p != part), width))
                    for width in bits
                ),
            ],
        )
    ],
    title="Change of the damage (KL); negative is better",
)

# %% [markdown]
# ## The calibration text
#
# All four parts, calibrated on one kind of text and judged on another. If calibration only learned its text, the row
# of the same kind would win and the other would lose against plain rounding (a ratio above 1).

# %%
text_rows = [row for row in texts.to_json()["rows"] if row["parts"] != "plain"]
sources = list(dict.fromkeys(row["calibration"] for row in text_rows))
judged = list(dict.fromkeys(row["text"] for row in text_rows))
show_table(
    ["calibrated on", "judged on", *groups],
    [
        [
            source,
            text,
            *(with_interval(at(text_rows, calibration=source, text=text, bits=width)["kl_of_plain"]) for width in bits),
        ]
        for text in judged
        for source in sources
    ],
    title="KL over that of plain rounding (95 % interval over windows)",
)

# %%
show_figure(
    bars_chart(
        [f"{text}, {width} bits" for text in judged for width in bits],
        {
            f"calibrated on {source}": [
                at(text_rows, calibration=source, text=text, bits=width)["kl_of_plain"]
                for text in judged
                for width in bits
            ]
            for source in sources
        },
        f"Damage left by the calibration text, {model}",
        "KL over that of plain rounding",
    )
)

# %% [markdown]
# ## The saved run
#
# The same notebook with its own values, kept with the program. If you changed nothing and your machine rounds alike,
# the tables above repeat it.

# %%
saved = saved_results("ablations-tiny-llama")[0]
show_table(
    ["parts", *(f"{width} bits" for width in saved["setup"]["bits"])],
    [
        [
            name,
            *(
                with_interval(at(saved["rows"], parts=name, bits=width)["kl_of_plain"])
                for width in saved["setup"]["bits"]
            ),
        ]
        for name in dict.fromkeys(row["parts"] for row in saved["rows"])
        if name != "plain"
    ],
    title=f"{saved['provenance']['model_id']}, {measured_where(saved)}",
)

# %% [markdown]
# ## Reading it
#
# - A ratio whose interval holds 1 is no result. Windows of one text are alike; the interval knows nothing of others.
# - The bias is a constant per output, worked out for inputs as the unquantized model sees them. Alone it does harm at
#   few bits where a width mostly shrinks outputs: a norm that follows forgives an output that is too small all over,
#   and no longer does when only its mean is right. With the gain that harm should be gone: compare their rows.
# - The search pays most where weights lie on an old grid (it finds the grid again), so its worth on a model that was
#   quantized before says little about one that was not. The table at the top says which kind this model is.
# - Half of each text has half as many windows of each: the mixture is not given more to learn from.
#
# The same on your model: `tapwb report ablations_cells -p model=YOURS`.
