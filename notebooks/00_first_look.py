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
# # A first look: tokens, their importance, their bits
#
# A language model reads text as **tokens**, and for every token it multiplies numbers by its weights. Those
# weights can be read at 8 bits, or at 6, 5 or 4, from one and the same stored copy: the fewer bits are read, the
# fewer bytes move, and the more the answer may suffer. This notebook loads a small model, asks which tokens of a
# sentence matter most, gives those more bits and the rest fewer, lets the model write, and reads what that saved
# and what it cost.
#
# It takes under two minutes on a laptop. Change the values below and run it again.

# %% tags=["parameters"]
model = "smollm2-135m"
prompt = "The Amazon river carries more water than the next seven rivers together. It rises in"
max_new_tokens = 40
precision = "adaptive:5.5:entropy"
seed = 0

# %% [markdown]
# ## The model
#
# The weights are stored once, as **nested** numbers: the first four bits of each are the 4-bit reading, one more
# bit makes the 5-bit reading, and all eight are close to lossless. So every bit-width below comes from the same
# bytes in memory.

# %%
from tapwb.core.units import format_bytes, format_count
from tapwb.views.notebook import (
    generate,
    open_engine,
    show_difference,
    show_reasons,
    show_run,
    show_table,
    show_text,
    show_tokens,
)

engine = open_engine(model, seed=seed)
anatomy = engine.anatomy

show_table(
    ["", "value"],
    [
        ["model", engine.loaded.info.title],
        ["parameters", format_count(anatomy.n_parameters)],
        ["layers", f"{anatomy.n_layers} of width {anatomy.hidden_size}"],
        ["weights at 16 bits", format_bytes(anatomy.weights_bytes(16))],
        ["weights in memory here", f"{format_bytes(engine.weights_bytes())}, counted on the tensors"],
        ["weights were before", engine.loaded.info.quantized_before or "not quantized"],
    ],
)

# %% [markdown]
# ## Which tokens matter?
#
# The signal used here is **entropy**: after a quick pass at 4 bits, how unsure is the model about what comes
# next? Where it is unsure, small errors change the outcome; where it is sure, they do not. The score is the
# token's rank in this text, from 0 (least) to 1 (most). The plan then spends the budget of bits where the score
# is high.
#
# Below, the tint is the importance, and the underline and the small number are the bits.

# %%
scored = engine.score(prompt)
plan = engine.plan(scored, precision)
show_tokens(engine, scored, plan)

# %%
show_table(
    ["bits", "tokens"],
    [[f"{bits}", count] for bits, count in sorted(plan.histogram().items()) if count],
    title=f"{plan.mean_bits:.2f} bits on average",
)

# %% [markdown]
# The first four tokens get more than their score asks for: models of this kind lean on them, so the planner keeps
# a floor under them. Each decision can be asked for its reason:

# %%
last = plan.n_tokens - 1
show_reasons(engine, scored, plan, [0, last // 2, last])

# %% [markdown]
# ## Let it write
#
# While it writes, a controller watches the model's own uncertainty, step by step, and keeps the average on
# target.

# %%
text, metrics = generate(engine, prompt, max_new_tokens, precision)
show_text(text, f"at {precision}")

# %%
show_run(metrics)

# %% [markdown]
# Every number says where it comes from. On a machine without an energy counter the energy is **estimated** from
# the bytes moved and the operations done, and is labelled so; an estimate is never mixed with a measurement.
#
# ## What would 16 bits have written?
#
# The same prompt, with the weights as they were loaded. Greedy decoding makes the comparison exact: where the
# texts part, the bits made the difference.

# %%
reference, reference_metrics = generate(engine, prompt, max_new_tokens, "16")
show_difference(text, reference, (f"at {precision}", "at 16 bits"))

# %%
show_table(
    ["", "adaptive", "16 bits"],
    [
        ["mean bits", metrics["precision"]["mean_bits"], reference_metrics["precision"]["mean_bits"]],
        ["weight bytes read", *(format_bytes(m["speed"]["weight_bytes_read"]) for m in (metrics, reference_metrics))],
        ["tokens per second", *(m["speed"]["decode_tok_per_s"] for m in (metrics, reference_metrics))],
    ],
)

# %% [markdown]
# Two texts that part early are not proof of damage: one changed word early on leads somewhere else, and both may
# be good. Whether the bits went to the right tokens is a question for statistics, with controls. That is the next
# notebook, `01_which_tokens_matter`.
#
# The speed above is that of the plain PyTorch path, which shows the idea and is easy to read. It is not the speed
# the format allows.
