# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---
# %% [markdown]
# # Lesson 4: counting, or how the same runs give three exponents
#
# - **Question.** What is a FLOP of training, and how much of a conclusion depends on how it is
#   counted?
# - **What is measured.** FLOPs of one training step under six conventions, exactly; exponents of
#   the same committed runs under each.
# - **Decision rule.** A conclusion about architectures or exponents is reported only with its
#   convention, and is called robust only if it is the same under all of them.
# - **Minutes.** Under 1 on two CPU cores: nothing is trained.
#
# The usual count is C = 6·N·D: two FLOPs for each weight and token in the forward pass, four in the
# backward pass. It leaves out what attention does with the context, and it is silent about which
# weights are N.

# %% [markdown]
# ## Predict first
#
# 1. A transformer of width 64 and depth 2 with a vocabulary of 256: how large is its executed work
#    over 6·N·D with contexts of 128 tokens, and with contexts of 4096?
# 2. Embedding tables are looked up, not multiplied. Does leaving them out of N make the exponent of
#    loss on compute larger or smaller?
# 3. A mixture of eight experts with two active: by what factor do its 6·N·D with all and with
#    active parameters differ?

# %%
from isoflop.experiments import lessons
from isoflop.experiments.claims.scaling import embeddings_move_the_exponent
from isoflop.experiments.families import model
from isoflop.figures import ladder as figure
from isoflop.figures import style
from isoflop.sim.compare.study import Study
from isoflop.sim.cost.flops import param_counts, step_flops
from isoflop.sim.cost.names import CONVENTIONS

# %% [markdown]
# ## Measure: one step, six counts
#
# Each number is exact integer arithmetic of the model's own parts; the tests of this project hold
# it to the compiled program, operation by operation. First what the words mean:

# %%
for name, meaning in CONVENTIONS.items():
    print(f"{name:18} {meaning}")

# %%
for family in ("dense", "moe", "mamba"):
    print(f"\n{family}: {param_counts(model(family, 64, 2))}")
    for seq_len in (128, 1024, 8192):
        step = step_flops(model(family, 64, 2), seq_len, 1)
        ratios = ", ".join(f"{way} {flops / step['6ND']:.2f}" for way, flops in step.items())
        print(f"  {seq_len:5} tokens, over 6·N·D: {ratios}")

# %% [markdown]
# Which of the columns grow with the length, and for which family?
#
# ## Measure: the same runs, three exponents
#
# Loss against compute along the lower envelope of the 45 dense runs of the ladder:

# %%
rows = lessons.records("ladder", "dense")
study = Study(rows, 300)
for way in study.conventions:
    (line,) = study.lines(way)
    low, high = line.fit.interval["alpha"]
    print(f"{way:18} α = {line.fit.estimate['alpha']:.3f} [{low:.3f}, {high:.3f}]")

# %% [markdown]
# And how the best size grows, N\* ∝ C^a, with the embedding and head in N and without:

# %%
folder = lessons.path("ladder").parent
print(embeddings_move_the_exponent.verdict(folder).result)

# %% [markdown]
# <details><summary>Answers to the predictions</summary>
#
# 1. Above 1 at 128 tokens, and many times that at 4096: the score and value products of attention
#    grow with the context, and a small model is nearly nothing but attention then. 6·N·D knows no
#    context. (The number at 128 is partly the elementwise work of so small a model.)
# 2. Smaller: embedding and head are a fixed number of weights for each channel, so leaving them out
#    removes most from the smallest models, and stretches the axis of compute. Pearce & Song (2024,
#    arXiv 2406.12907) and Porian et al. (2024, arXiv 2406.19146) explain with this why Kaplan and
#    Hoffmann found .73 and .50 for a. Whether it is resolved here is printed above.
# 3. Printed above, as `6ND` over `6ND_active`; for a real mixture with 256 experts it is a factor
#    of ten and more.
#
# </details>
#
# ## What it does to a comparison
#
# Gains in compute over dense for the same loss, by convention, from the committed study of eight
# families (`isoflop figures ladder` draws it):

# %%
every = Study(lessons.records("ladder"), 100, costs=("executed", "causal", "6ND_non_embedding"))
gains = {cost: [one.json() for one in found] for cost, found in every.gains.items()}
lessons.show(
    figure.gains({"gains": gains}, style.styles(every.families), lessons.PICTURES / "lesson4")
)

# %% [markdown]
# ## A bad design
#
# A paper compares Mamba with a transformer and charges both "transformer FLOPs" of the same shape,
# since its spreadsheet has one formula. Here is what that does at 128 and at 8192 tokens: the
# factor by which Mamba's work is misstated.

# %%
for seq_len in (128, 8192):
    charged = step_flops(model("dense", 64, 2), seq_len, 1)["executed"]
    executed = step_flops(model("mamba", 64, 2), seq_len, 1)["executed"]
    print(f"{seq_len:5} tokens: charged {charged / executed:.2f} × what Mamba executes")

# %% [markdown]
# Which result would that paper report at each length, and which would it not see?
#
# <details><summary>Diagnosis</summary>
#
# Each architecture must be charged for its own work. A recurrence charged with attention's products
# looks expensive at long contexts, exactly where it is cheap; at short ones its scan, which is
# elementwise and in no count of matmuls, goes unpaid. And FLOPs are not time: lesson 5 measures
# seconds.
#
# </details>
#
# ## Exercise

# %%
lessons.ask("lesson4")

# %% [markdown]
# ```sh
# isoflop check lesson4 answer.json
# ```
#
# ## Now with your own corpus
#
# Counting knows no corpus, but exponents do. With a ladder of your own (lesson 3 says how):
#
# ```sh
# ISOFLOP_RECORDS=own/ladder python experiments/lessons/lesson4_counting.py
# ```
#
# And your own model: `isoflop run costs --families dense mamba --width 768` prints every count of
# any family at any size.
