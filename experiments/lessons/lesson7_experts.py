# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---
# %% [markdown]
# # Lesson 7: experts, total and active
#
# - **Question.** A mixture of experts has many weights and uses few of them for a token. Which of
#   its costs are saved, and which are not?
# - **What is measured.** Weights, executed FLOPs and bytes read of a mixture of eight experts
#   beside a dense model, exactly; the gain in loss of committed runs under several counts.
# - **Decision rule.** The mixture is ahead in a cost if the 90 % interval of its gain over dense in
#   that cost lies above 1, behind if below, and else not resolved.
# - **Minutes.** Under 1 on two CPU cores: nothing is trained.
#
# In a routed layer a small matrix, the router, sends each token to k of E experts. The token is
# multiplied with those alone: *active* weights. All of them have to be somewhere: *total* weights.

# %% [markdown]
# ## Predict first
#
# 1. Eight experts, two for a token: what share of the model's weights does a token touch: a
#    quarter, a third, half?
# 2. When eight sequences write a token each, how many of the eight experts are read from memory?
# 3. The mixture has the loss of a dense model of how many times the compute: 1, 2 or 4?

# %%
from isoflop.experiments import lessons
from isoflop.experiments.families import model
from isoflop.figures import quickstart as figure
from isoflop.sim.compare.study import Study
from isoflop.sim.cost.flops import param_counts, step_flops
from isoflop.sim.cost.hardware import decode, device, roofline

# %% [markdown]
# ## What is free: FLOPs
#
# Both families have the same active weights, by construction:

# %%
for family in ("dense", "moe"):
    config = model(family, 64, 2)
    counts, step = param_counts(config), step_flops(config, 128, 4)
    print(
        f"{family:5}: {counts['total']:7,} weights, {counts['active']:7,} active, "
        f"{step['executed']:.2e} executed FLOPs a step, {step['matmul']:.2e} of them matmuls"
    )

# %% [markdown]
# The executed work of the mixture is *more* than its active weights say. Where does that come from?
# (The router, softmax and sorting; and blocks of rows: each expert's tokens are padded to whole
# blocks, which a small batch fills badly.)
#
# ## What is not free: bytes
#
# A decoding step reads every weight that any of its tokens touches. One sequence touches two
# experts a layer; with more sequences, soon all:

# %%
dense, moe = model("dense", 64, 2), model("moe", 64, 2)
print("sequences   dense reads   moe reads   (weights)")
for batch in (1, 2, 4, 8, 16, 64):
    print(
        f"{batch:9} {dense.touched_params(batch):13,.0f} {moe.touched_params(batch):11,.0f}   "
        f"{moe.touched_params(batch) / moe.touched_params(1):.2f} × those of one"
    )

# %% [markdown]
# At a size where it matters, on one H100, the least seconds for a token of each of B sequences:

# %%
large = {family: model(family, 2048, 24, 32_000) for family in ("dense", "moe")}
for batch in (1, 8, 64, 512):
    told = {}
    for family, config in large.items():
        bound = roofline(decode(config, 2048, batch), device("H100"))
        told[family] = f"{1e3 * bound.seconds:.2f} ms ({bound.bound})"
    print(f"{batch:4} sequences: {told}")

# %% [markdown]
# <details><summary>Answers to the predictions</summary>
#
# 1. More than a quarter: attention, embedding and head are dense, and count in both. The exercise
#    asks for the number.
# 2. E·(1 − (1 − k/E)^B) in expectation: for eight sequences seven of eight. The saving in bytes,
#    which is what decoding waits for, is gone at small batches, and the memory was never saved at
#    all.
# 3. About 2 in executed FLOPs at this scale, and nothing that is resolved where idle experts are
#    counted. See below.
#
# </details>
#
# ## Measure: what it buys
#
# Gains over dense of the committed ladder, by what is counted:

# %%
rows = [row for row in lessons.records("ladder") if row.labels["family"] in ("dense", "moe")]
costs = ("executed", "6ND", "6ND_non_embedding", "6ND_active", "seconds")
study = Study(rows, 200, costs=costs)
for cost, (found,) in study.gains.items():
    last = found.ceg[-1] if found.ceg else None
    print(
        f"{cost:18}",
        f"{last.value:.2f} [{last.low:.2f}, {last.high:.2f}]" if last else found.reason,
    )

# %% [markdown]
# The same runs against their size, once by all weights and once by the active ones:

# %%
lessons.show(figure.loss_vs_params(study, lessons.PICTURES / "lesson7"))

# %% [markdown]
# In which row do the two lines part, and in which do they meet? Both are the same runs.
#
# Which of these costs is yours? If you pay for training time, seconds; if you must fit a phone's
# memory, total weights; if you serve one user, the bytes of a step; if you serve hundreds at once,
# mostly their states, which experts leave as they are (the table of milliseconds above).
#
# ## A bad design
#
# "At the same size our mixture beats the dense model by a wide margin, for a tenth more FLOPs.
# Sparsity is free." The two runs that this is about, and a dense model of twice the depth:

# %%
points = {(cell.family, cell.width, cell.depth, cell.tokens): cell for cell in study.points}
tokens = max(cell.tokens for cell in study.points)
for family, width, depth in (("dense", 64, 2), ("moe", 64, 2), ("dense", 64, 4)):
    if cell := points.get((family, width, depth, tokens)):
        print(
            f"{family:5} {width} × {depth}: {cell.params['total']:7,} weights, "
            f"{cell.flops['executed']:.2e} FLOPs, loss {cell.loss:.3f}"
        )

# %% [markdown]
# <details><summary>Diagnosis</summary>
#
# "The same size" is the same *active* size. The comparison holds one cost and lets the others go:
# two and a half times the weights have to be stored, moved and, with a few sequences at once, read;
# and seconds are no FLOPs (look at the gain in seconds above). It is also one pair of runs, which
# says nothing about how the gain moves with scale. The honest answer is a gain **per cost**, with
# an interval, over a range of budgets, and the reader chooses the cost.
#
# </details>
#
# ## Exercise

# %%
lessons.ask("lesson7")

# %% [markdown]
# ```sh
# isoflop check lesson7 answer.json
# ```
#
# ## Now with your own corpus
#
# Specialised experts should gain more on a text of several kinds. Join a book and some code in one
# file, and measure:
#
# ```sh
# isoflop run ladder --families dense moe --sizes 4 --corpus mixed.txt --workers 2 --runs runs/own
# isoflop records ladder --families dense moe --sizes 4 --corpus mixed.txt --runs runs/own --out own
# ISOFLOP_RECORDS=own/ladder python experiments/lessons/lesson7_experts.py
# ```
