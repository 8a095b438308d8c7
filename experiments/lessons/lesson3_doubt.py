# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---
# %% [markdown]
# # Lesson 3: fit it, and doubt it
#
# - **Question.** What do runs of several sizes and lengths determine of L = E + A/N^α + B/D^β, and
#   what only seems to be determined?
# - **What is measured.** The surface fitted to 45 committed runs of a dense transformer; the same
#   with its floor pinned; designs that cannot answer; intervals by bootstrap.
# - **Decision rule.** A number is reported only where the fit says "converged" and gives an
#   interval. Two laws are told apart only if their predictions differ by more than the noise
#   between seeds.
# - **Minutes.** Under 1 on two CPU cores: nothing is trained.
#
# The surface of Hoffmann et al. (2022, arXiv 2203.15556) has five parameters: E that neither size
# nor data removes, and a power of the parameters N and of the tokens D. Fitting it always gives
# five numbers. This lesson is about which of them to believe.

# %% [markdown]
# ## Predict first
#
# 1. Of E, α, β and the loss at the largest run: which will have the narrowest interval?
# 2. If somebody else assumes another E and fits the same runs, by how much can β change: 2 %, 20 %,
#    or twofold?
# 3. Nine runs without any noise, all on twenty tokens for each parameter: is that enough for five
#    parameters?

# %%
import numpy as np

from isoflop.experiments import lessons
from isoflop.experiments.lessons import exercises
from isoflop.sim.compare import family_fits
from isoflop.sim.compare.points import COUNT, points
from isoflop.sim.compare.study import Study

# %% [markdown]
# ## Measure
#
# Five sizes, three lengths, three seeds of the committed ladder. The fit minimises Huber's loss of
# log L from many starts; the interval is a bootstrap over whole cells, each draw fitted again.

# %%
rows = lessons.records("ladder", "dense")
group = sorted(points(rows), key=lambda cell: cell.flops["executed"])
fit = family_fits.surface(group, draws=300)
print(fit.status, fit.reason)
for name, value in fit.estimate.items():
    low, high = fit.interval[name]
    print(f"{name:14} {value:12.4g}  [{low:.4g}, {high:.4g}]")

# %%
for name in ("range of N", "range of D", "starts", "interval", "held out"):
    print(f"{name}: {fit.checklist[name]}")

# %% [markdown]
# ## The floor decides the exponent
#
# Pin E at two values that these runs allow, fit the rest, and compare:

# %%
floors = (0.0, exercises.PINNED)
laws, left = exercises.pinned(fit, floors)
corner = group[-1]
for i, floor in enumerate(floors):
    predicted = float(laws(corner.params[COUNT], corner.tokens)[i])
    print(
        f"E = {floor:.1f}: α = {laws.alpha[i]:.3f}, β = {laws.beta[i]:.3f}, misfit "
        f"{np.sqrt(np.mean(left[i] ** 2)):.2%}, loss of the largest run {predicted:.4f}"
    )
print(f"measured there: {corner.loss:.4f} [{corner.low:.4f}, {corner.high:.4f}]")

# %% [markdown]
# <details><summary>Answers to the predictions</summary>
#
# 1. The loss. Predictions inside the data are known to a per cent or two, the parameters behind
#    them hardly: many combinations of E, A, α, B and β draw nearly the same surface.
# 2. Twofold, as you see, at misfits that nobody could tell apart, while the loss of the largest run
#    moves by a few thousandths. Here it is β that takes up the slack; with other runs it is α. An
#    exponent is a statement about the floor that was assumed: never compare exponents of two
#    papers, or of two architectures, unless the floor is the same and known.
# 3. No; see below.
#
# </details>
#
# ## Which runs, which exponent
#
# The same law, each time without one size or with one seed alone:

# %%
for part in Study(rows, draws=100).subsets:
    if "alpha" in part:
        print(
            f"{part['subset']:28} α = {part['alpha']:.3f}, predicts {part['predicted']:.4f} where "
            f"{part['measured']:.4f} was measured ({part['status']})"
        )
    else:
        print(f"{part['subset']:28} {part['status']}: {part['reason']}")

# %% [markdown]
# ## A bad design
#
# "Everyone trains on twenty tokens for each parameter, so we did too." Nine sizes over three
# decades, exact losses of a published surface without a trace of noise:

# %%
ratio = exercises.along_a_ratio(20.0)
print(ratio.status, "-", ratio.reason)

# %% [markdown]
# What is missing, and would more runs help?
#
# <details><summary>Diagnosis</summary>
#
# On D = 20·N both terms of the law are powers of the same quantity: A/N^α and B/(20·N)^β can be
# exchanged for each other. No number of such runs and no precision tells which of them falls how
# fast. Vary D at fixed N. Cooldown branches of one run make several D nearly free.
#
# </details>
#
# ## What a bootstrap can say, and what it cannot
#
# A bootstrap draws runs again and again and fits each draw. With few runs it fits them almost
# exactly and so hardly varies. `isoflop run coverage` simulates this: with six runs an arm, nominal
# 90 % intervals of compute-equivalent gains held the truth in 40 to 60 % of repeats (LOG.md). Below
# the number of runs that a bootstrap needs, this library simulates the noise instead, with its
# degrees of freedom, and says so:

# %%
few = [cell for cell in group if cell.tokens == group[-1].tokens or cell.width in (24, 64)][:6]
print(family_fits.surface(few, draws=300).checklist.get("interval", "no interval: too few runs"))
print(fit.checklist["interval"])

# %% [markdown]
# It cannot say that the *form* of the law is right, that the learning rate was tuned alike at all
# sizes, or that the law holds beyond the runs. "Held out", printed above, is a check of the last:
# the law is fitted to the cheap runs and judged on the expensive ones, beside two simpler laws.
#
# ## Exercise

# %%
lessons.ask("lesson3")

# %% [markdown]
# ```sh
# isoflop check lesson3 answer.json
# ```
#
# ## Now with your own corpus
#
# Train a small ladder on your text, keep its records, and run the lesson on them:
#
# ```sh
# isoflop run ladder --families dense --sizes 4 --corpus book.txt --workers 2 --runs runs/own
# isoflop records ladder --families dense --sizes 4 --corpus book.txt --runs runs/own --out own
# ISOFLOP_RECORDS=own/ladder python experiments/lessons/lesson3_doubt.py
# isoflop check lesson3 answer.json --records own/ladder
# ```
#
# A table of your own runs from elsewhere works as well: `isoflop fit runs.csv --n N --d D --loss
# loss`.
