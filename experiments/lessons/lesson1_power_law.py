# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lesson 1: loss falls as a power of compute
#
# - **Question.** Does the loss of ever larger models fall as a power of the compute that trained
#   them, so that small models tell of a large one?
# - **What is measured.** Held-out loss (nats per token) of six small transformers on English text,
#   two seeds each, against their executed training FLOPs.
# - **Decision rule.** It is a power law here if the law of the five cheaper models predicts the
#   loss of the sixth within 3 %. An irreducible loss E is told only if its 90 % interval lies above
#   zero.
# - **Minutes.** Under 1 on two CPU cores, nearly all of it training; the second time none.
#
# A *power law* is L = A/C^α: each tenfold increase of the compute C multiplies the loss by the same
# factor, 10^−α. On two logarithmic axes it is a straight line.

# %% [markdown]
# ## Predict first
#
# Write down, before you run anything:
#
# 1. From the first model to the last, compute grows about a hundredfold. By what factor will the
#    loss fall: 1.1, 2, 10 or 100?
# 2. A model that guesses each of 256 bytes alike has a loss of ln 256 ≈ 5.5 nats. Roughly where
#    will the largest of these models end?
# 3. Will the six points lie on a line?

# %%
from isoflop.experiments import lessons
from isoflop.figures import power_law as figure
from isoflop.sim.compare.points import columns, envelope, points
from isoflop.sim.laws.forms import fit_table

# %% [markdown]
# ## Measure
#
# Twelve runs: six sizes, two seeds. `isoflop describe power_law` says what they are. Runs that are
# finished are never trained again.

# %%
rows = lessons.train("power_law", corpus=lessons.corpus())
cells = sorted(points(rows), key=lambda cell: cell.flops["executed"])
for cell in cells:
    print(
        f"width {cell.width:3}: {cell.params['total']:7,} parameters, {cell.tokens:9,} tokens, "
        f"{cell.flops['executed']:.2e} FLOPs, loss {cell.loss:.3f} "
        f"[{cell.low:.3f}, {cell.high:.3f}]"
    )

# %% [markdown]
# The brackets are 90 % intervals over seeds. Now the line, through all runs and through those of
# the five cheaper models, which have not seen the sixth:

# %%


def power_law(cells, asymptote=False):
    return fit_table(columns(cells), law="power", flops="executed", asymptote=asymptote)


every, five = power_law(cells), power_law(cells[:-1])
for name, fit in (("all six", every), ("the five cheaper", five)):
    low, high = fit.interval["alpha"]
    print(f"{name}: α = {fit.estimate['alpha']:.4f} [{low:.4f}, {high:.4f}], {fit.status}")

# %%
lessons.show(figure.draw(rows, lessons.PICTURES / "lesson1"))

# %% [markdown]
# Look at the picture before you open the answers: where do the points leave the line?
#
# <details><summary>Answers to the predictions</summary>
#
# 1. By a factor of about 1.5. An exponent near a tenth means that ten times the compute takes a
#    fifth off the loss, no more. This is why scaling is expensive.
# 2. Near 1.5 nats: most of the way from 5.5 is letters, spaces and short words, which the smallest
#    model already has.
# 3. Nearly. What remains is partly noise between seeds (the brackets) and partly that the sizes
#    were chosen by hand: a model too large or too small for its compute lies above the line. Lesson
#    2 looks for the right size of each budget. And the sixth lies a little *below* the line of the
#    others, at the edge of its band: an irreducible loss would bend it the other way.
#
# </details>
#
# ## An irreducible loss
#
# Text has an entropy that no model can beat, so the law should be L = E + A/C^α. Can these runs see
# E?

# %%
bent = power_law(cells, asymptote=True)
print(f"{bent.status}: {bent.reason or 'E, A and α are told apart'}")
if "E" in bent.interval:
    low, high = bent.interval["E"]
    print(f"E = {bent.estimate['E']:.3f} [{low:.3f}, {high:.3f}]")

# %% [markdown]
# <details><summary>What this means</summary>
#
# Read the status first. "At a bound" means that the data are described best with no E at all, and
# an interval that reaches zero means that they do not tell. That is not evidence that E *is* zero:
# it means that these losses are far above it. Whoever prints an E from a range this short prints a
# guess.
#
# </details>
#
# ## A bad design
#
# Someone has trained one dense model after another, each larger, **all on the same number of
# tokens**, and reads off an exponent. Here are such runs, from the committed ladder, beside the
# best ones of that ladder at each cost:

# %%
ladder = points(lessons.records("ladder", "dense"))
fewest = min(cell.tokens for cell in ladder)
one_dial = [cell for cell in ladder if cell.tokens == fewest]
best = envelope(ladder, "executed")
for name, group in (("one number of tokens", one_dial), ("best at each cost", best)):
    fit = power_law(group)
    low, high = fit.interval["alpha"]
    print(f"{name}: {len(group)} cells, α = {fit.estimate['alpha']:.3f} [{low:.3f}, {high:.3f}]")

# %% [markdown]
# What went wrong, and which way does it bend the conclusion?
#
# <details><summary>Diagnosis</summary>
#
# Only one of two dials was turned. With the tokens fixed, a larger model soon has too little to
# read: its loss approaches what these tokens allow, so the exponent is too small, and would be
# smaller still with larger models. The law that one then extrapolates is not one of scaling but of
# under-training. Kaplan et al. (2020, arXiv 2001.08361) and Hoffmann et al. (2022, arXiv
# 2203.15556) disagreed about how large a model should be partly for how tokens and schedules were
# chosen.
#
# </details>
#
# ## Exercise
#
# Answer in a file `answer.json` and let it be marked:

# %%
lessons.ask("lesson1")

# %% [markdown]
# ```sh
# isoflop check lesson1 answer.json
# ```
#
# ## Now with your own corpus
#
# Any text of a megabyte or more; its bytes are the tokens. Set the variable, and run the lesson
# again:
#
# ```sh
# ISOFLOP_CORPUS=book.txt python experiments/lessons/lesson1_power_law.py
# isoflop check lesson1 answer.json --records runs/lessons
# ```
#
# Is its exponent another than that of the King James Bible? Do the intervals tell them apart?
