# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---
# %% [markdown]
# # Lesson 5: attention and recurrences, quadratic and linear
#
# - **Question.** How do time and memory of attention and of recurrences grow with the context, and
#   from which length on is which cheaper?
# - **What is measured.** Seconds of a training step, of reading a prompt and of writing a token,
#   and bytes of decoding state, at lengths of 128 to 32768 tokens; beside the exact count of
#   operations.
# - **Decision rule.** A cost grows as T^p with p the slope of a line on logarithmic axes between 1k
#   and 32k tokens, with its 90 % interval. A crossing is reported where one cost rises through the
#   other inside the measured lengths.
# - **Minutes.** Under 1 on two CPU cores, most of it compiling the programs that are timed.
#
# Attention compares each token with all that came before: T²/2 comparisons for T tokens. A
# recurrence updates a state of fixed size, once for each token: T updates.

# %% [markdown]
# ## Predict first
#
# 1. From 1k to 8k tokens, by what factor does a training step of attention slow down, and of Mamba?
# 2. At 128 tokens, which of the two is faster?
# 3. How many bytes does each need to go on writing after 8192 tokens, at width 64 and two layers?

# %%
from isoflop.experiments import lessons
from isoflop.experiments.families import model
from isoflop.figures import context as figure
from isoflop.sim.compare.context_crossings import crossings
from isoflop.sim.compare.slopes import slopes
from isoflop.sim.cost.flops import step_flops
from isoflop.sim.evaluate import context

# %% [markdown]
# ## Why: the count
#
# Executed FLOPs of a training step of one sequence, exactly:

# %%
for family in ("dense", "mamba", "linear"):
    config = model(family, 64, 2)
    counted = {t: step_flops(config, t, 1)["executed"] for t in (1024, 2048, 4096, 8192)}
    print(
        f"{family:7}", ", ".join(f"{t}: {flops / t:,.0f} a token" for t, flops in counted.items())
    )

# %% [markdown]
# A token of a recurrence costs the same wherever it stands. A token of attention costs more the
# later it comes.
#
# ## Measure: this machine
#
# A small measurement here and now, of training steps. Programs take turns, so that a slow minute
# hits all alike:

# %%
models = {family: model(family, 64, 2) for family in ("dense", "linear")}
here = context.measure(models, (1024, 2048, 4096), ("train_step_seconds",))
for row in here:
    grows = f", grows as T^{row['slope']:.2f}" if "slope" in row else ""
    print(f"{row['family']:7} {row['seq_len']:5} tokens: {1e3 * row['value']:8.1f} ms{grows}")

# %% [markdown]
# ## Measure: the committed table
#
# The same with more families and lengths, on two idle cores (`isoflop run context`):

# %%
rows = lessons.table("context")
for quantity, found in slopes(rows).items():
    print(quantity, {family: str(slope) for family, slope in found.items()})

# %%
quantities = ("train_step_seconds", "prefill_seconds", "decode_seconds", "state_bytes")
for one in crossings(rows, ["dense"], quantities):
    print(f"{one.quantity:18} dense over {one.recurrence:7} from {one.words}")

# %%
lessons.show(figure.draw(rows, lessons.PICTURES / "lesson5"))

# %% [markdown]
# <details><summary>Answers to the predictions</summary>
#
# 1. Nearly 2 to the power of the printed slope for each doubling: about fiftyfold for attention,
#    about eightfold for Mamba. The slope of attention is a little below 2, because matrices that do
#    not know the context take a part of the time that does not grow.
# 2. Attention: at short contexts its quadratic part is small, and it is made of large matmuls,
#    which processors are best at. Recurrences pay for their scan at every length. That is why there
#    is a crossing at all.
# 3. Attention keeps every key and value, megabytes; a recurrence keeps what it kept after one
#    token, kilobytes. The exercise asks for the ratio.
#
# </details>
#
# ## A bad design
#
# "We timed each model once, one after the other, at 128 and at 1024 tokens, and found that
# attention grows linearly as well":

# %%
times = {
    row["seq_len"]: row["value"]
    for row in rows
    if (row["family"], row["quantity"]) == ("dense", "train_step_seconds")
}
print(f"from 128 to 1024 tokens: T^{context.power((128, times[128]), (1024, times[1024])):.2f}")
print(f"from 1024 to 8192 tokens: T^{context.power((1024, times[1024]), (8192, times[8192])):.2f}")

# %% [markdown]
# What is wrong with the lengths, and what with the timing?
#
# <details><summary>Diagnosis</summary>
#
# Below about a thousand tokens the part of a step that is linear in the length outweighs the
# quadratic one at this width, so the slope is that of the matrices. Measure where the claim is
# made. And a program that is timed once, after another, is compared across two moments of a
# machine: a second process, a warm cache or a slower clock is in the ratio. Take turns, repeat, and
# report the spread.
#
# </details>
#
# ## Exercise
#
# Of the committed table:

# %%
lessons.ask("lesson5")

# %% [markdown]
# ```sh
# isoflop check lesson5 answer.json
# ```
#
# ## Now with your own corpus
#
# Time knows no corpus, but your machine is not ours, and your width is not 64:
#
# ```sh
# isoflop run context --families dense mamba gated_deltanet --lengths 1024 2048 4096
# isoflop figures context
# ```
#
# What a longer context *buys* on your text, in loss by position, is the other half: `isoflop
# context RUN --text book.txt` measures it of trained runs.
