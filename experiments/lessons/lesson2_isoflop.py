# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---
# %% [markdown]
# # Lesson 2: IsoFLOP, or how large a model should be
#
# - **Question.** For a given amount of training compute, how large should the model be, and how
#   does that size grow with the compute?
# - **What is measured.** Held-out loss of seven sizes at each of five budgets of executed FLOPs,
#   two seeds each; the size of least loss, N\*, at each budget.
# - **Decision rule.** A budget counts if its best size is neither the smallest nor the largest that
#   was tried. N\* grows with compute if the 90 % interval of a in N\* ∝ C^a lies above 0;
#   parameters and tokens grow alike if it holds ½.
# - **Minutes.** Under 1 from the committed runs; about 3 on two CPU cores with your own corpus.
#
# A budget of C FLOPs buys either a large model that reads little or a small one that reads much.
# Along one budget (an *IsoFLOP* line) the loss is a valley. This is the second approach of Hoffmann
# et al. (2022, arXiv 2203.15556, section 3.2), and where this tool has its name from.

# %% [markdown]
# ## Predict first
#
# 1. Draw three valleys by hand, for a budget, three times and ten times as much: loss upward, size
#    to the right, logarithmic. Where does the lowest point of each lie?
# 2. With ten times the compute, how many times as large should the model be: 1.5, 3, or 10?
# 3. Twenty tokens for each parameter is a well-known rule. Will it hold for models of ten thousand
#    parameters?

# %%
import itertools

from isoflop.experiments import lessons
from isoflop.figures import isoflop as figure
from isoflop.sim.compare import family_fits
from isoflop.sim.compare.points import families, points

# %% [markdown]
# ## Measure
#
# The runs are those of `isoflop run isoflop --workers 2`. Unless you have named a corpus of your
# own, the committed ones are read.

# %%
own = lessons.corpus(default="")
rows = lessons.train("isoflop", corpus=own) if own else lessons.records("isoflop")
((family, group),) = families(points(rows)).items()
print(f"{len(rows)} runs of {family}")
for width in sorted({cell.width for cell in group}):
    cells = sorted((c for c in group if c.width == width), key=lambda c: c.tokens)
    print(
        f"width {width:3}, {cells[0].params['total']:7,} parameters:",
        ", ".join(f"{cell.loss:.3f}" for cell in cells),
    )

# %% [markdown]
# Each line is a size, each column a budget. Read down a column: where is the least loss? Now let a
# parabola find it, in the logarithm of the size, among the sizes within a factor of four of the
# best:

# %%
found = family_fits.valleys(group)
for valley in found.valleys:
    low, high = valley.interval
    print(
        f"C = {valley.C:.1e}: N* = {valley.best:,.0f} [{low:,.0f}, {high:,.0f}], "
        f"L* = {valley.least:.3f} {valley.why}"
    )
low, high = found.interval
print(f"N* ∝ C^a with a = {found.a:.2f} [{low:.2f}, {high:.2f}]")
for warning in found.warnings:
    print("note:", warning)

# %%
lessons.show(figure.draw(rows, lessons.PICTURES / "lesson2"))

# %% [markdown]
# <details><summary>Answers to the predictions</summary>
#
# 1. Lower and further to the right with each budget, and each valley is shallow: a model twice too
#    large or too small costs a few per cent of loss. The bottom of a flat valley is hard to find,
#    which is what the brackets of N\* say.
# 2. 10^a, so three to four times as large. Hoffmann et al. found a near ½ at 10²¹ FLOPs, Kaplan et
#    al. (2020, arXiv 2001.08361) .73: the interval above holds the former and leaves out the
#    latter.
# 3. Nearly, as the exercise shows, and that proves little: the ratio is a property of the text, the
#    optimiser, the batch and the schedule. In lesson 3 the same family on Python code has another.
#
# </details>
#
# ## How sure is a?
#
# A line through three points has one degree of freedom. Had only three of these budgets been
# trained, which a would have come out, and how sure would it have seemed?

# %%
budgets = [valley.C for valley in found.valleys]
for some in itertools.combinations(budgets, 3):
    part = family_fits.valleys(group, some)
    low, high = part.interval
    chosen = ", ".join(f"{C:.1e}" for C in some)
    print(f"{chosen}: a = {part.a:.2f} [{low:.2f}, {high:.2f}]")

# %% [markdown]
# <details><summary>What these intervals say</summary>
#
# Most are so wide that they decide nothing: Student's t for one degree of freedom is 6.3 at 90 %,
# for three it is 2.4. Some are narrow, because three points happen to lie on a line, and whoever
# had only those would have been sure for no reason. Three budgets make a pretty figure; a statement
# about a needs more of them.
#
# </details>
#
# ## A bad design
#
# A colleague is sure that larger is better and has trained only the three largest sizes (of the
# committed runs):

# %%
committed = points(lessons.records("isoflop"))
sizes = sorted({cell.width for cell in committed})
large = [cell for cell in committed if cell.width in sizes[-3:]]
try:
    print(family_fits.valleys(large).a)
except ValueError as error:
    print(error)

# %% [markdown]
# What does the tool refuse to say, and why is it right?
#
# <details><summary>Diagnosis</summary>
#
# The best size is the smallest that was tried, at budget after budget: the valley's other side is
# missing, so nobody knows where it turns. A parabola through one flank has a minimum too; it lies
# wherever noise puts it. Two sizes beyond the minimum on **either** side are the design, and five
# near it are what an interval needs.
#
# </details>
#
# ## Exercise

# %%
lessons.ask("lesson2")

# %% [markdown]
# ```sh
# isoflop check lesson2 answer.json
# ```
#
# ## Now with your own corpus
#
# ```sh
# ISOFLOP_CORPUS=book.txt python experiments/lessons/lesson2_isoflop.py
# isoflop check lesson2 answer.json --records runs/lessons
# ```
#
# A text of one megabyte is read several times over by the smallest models of the largest budget;
# after four times, repetition is worth less than new text. Does that move the minima, and which way
# would you expect? `isoflop run isoflop --family mamba --widths 24 28 32 36 40 48` asks the same of
# another architecture.
