# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---
# %% [markdown]
# # Lesson 8: which model would you buy?
#
# - **Question.** Under a limit of latency and of price, which size of model should be served, and
#   how sure can one be?
# - **What is measured.** Quality of four sizes on a published scaling law; latency, price and
#   memory of serving them, predicted from exact arithmetic and a clock fitted to published
#   measurements, with the interval of its errors.
# - **Decision rule.** A model is the choice if it is the best that meets every limit in 95 % of
#   worlds drawn from what is uncertain. Otherwise the choice is not resolved, and the answer names
#   what to measure.
# - **Minutes.** About 1 on two CPU cores: nothing is trained.
#
# Larger models are better, slower and dearer. A *world* is one draw of everything that is
# uncertain: how far the predicted latency is off for such a deployment, what a chip costs, how good
# the model is. In each world one candidate is the best that meets the limits. The share of worlds
# in which it is the same one is how sure you may be.

# %% [markdown]
# ## Predict first
#
# Models of 3, 8, 14 and 32 billion parameters, replicas of one H100, four queries a second of 500 +
# 150 tokens, at most a tenth of a cent for a query:
#
# 1. Which would you serve if 95 % of answers must be there within 4 seconds? Within 2?
# 2. How sure are you, in per cent?
# 3. Which limit will decide: latency, price or memory?

# %%
from isoflop.experiments import lessons
from isoflop.experiments.lessons import exercises
from isoflop.figures import choice as figure
from isoflop.sim.compare import candidates
from isoflop.sim.compare.recommend import recommend
from isoflop.sim.compare.served import Place, Traffic
from isoflop.sim.cost.hardware import device

# %% [markdown]
# ## Measure
#
# What a candidate is, and what serving it takes:

# %%
slow = exercises.offer(exercises.SLOW)
for standing in slow.choice.standings:
    (low, p95, high), (cheap, price, dear) = standing.costs["p95"], standing.costs["per_query"]
    print(
        f"{standing.candidate.name:28} −loss {standing.quality[1]:.3f}, P95 {p95:5.2f} s "
        f"[{low:.2f}, {high:.2f}], ${price:.5f} [{cheap:.5f}, {dear:.5f}] a query, meets the "
        f"limits in {standing.meets:.0%}, best in {standing.wins:.0%}"
    )
print("\n" + slow.choice.words())

# %% [markdown]
# Now with half the time:

# %%
quick = exercises.offer(exercises.QUICK)
print(quick.choice.words())
for one in quick.choice.measurements[:3]:
    print(f"would settle it: {one.what}: right in {one.right:.0%} of worlds at best")

# %%
lessons.show(figure.draw(quick, lessons.PICTURES / "lesson8" / "choice.png"))

# %% [markdown]
# <details><summary>Answers to the predictions</summary>
#
# 1. Printed above. A latency limit is a limit on the bytes that a step reads, so on the size that a
#    replica of so many chips can have; the best choice is the largest that still meets it.
# 2. Less sure than you were. Where a candidate's interval of P95 crosses the limit, it meets it in
#    some worlds only, and its neighbour is the choice in the rest.
# 3. The one whose intervals the limits cut: look at the table. A limit that every candidate meets
#    decides nothing.
#
# </details>
#
# ## What these probabilities leave out
#
# Every note is an assumption:

# %%
for note in (*quick.notes, *quick.warnings):
    print("-", note)

# %% [markdown]
# A share of worlds is conditional on all of these. It is no probability that the model pleases your
# users.
#
# ## A bad design
#
# A purchasing committee ranks models by a benchmark score and takes the first. Two models on a test
# of 100 questions, and the same on 10,000:

# %%
for questions in (100, 10_000):
    table: dict[str, list] = {
        "model": ["ours", "theirs", "small"],
        "score": [0.71, 0.69, 0.62],
        "questions": [questions] * 3,
        "p95": [1.0, 1.0, 0.4],
        "per_query": [0.002, 0.001, 0.0002],
    }
    found, _ = candidates.rows(table, "score")
    place = Place(device("H100"), 1, "bf16")
    result = recommend(found, [place], Traffic(500, 150, 1.0), {"p95": 2.0}, quality="score")
    print(f"{questions:6} questions: {result.choice.words()}")

# %% [markdown]
# What does the score's last digit say, and what would you ask the committee before it signs?
#
# <details><summary>Diagnosis</summary>
#
# With 100 questions the standard error of a score is nearly five points, so a lead of two is noise,
# and the best of many noisy scores is too good besides (the winner's curse). With 10,000 the lead
# is resolved. And quality without a limit always buys the dearest: what is a point of score worth,
# at what latency, at which volume? `isoflop choose` takes your own rows with `questions` or a
# standard error, and says what to measure where it cannot tell.
#
# </details>
#
# ## Exercise

# %%
lessons.ask("lesson8")

# %% [markdown]
# ```sh
# isoflop check lesson8 answer.json
# ```
#
# ## Now with your own corpus
#
# Which of *your* runs would you take? After lesson 3's ladder on your own text, quality is minus
# the loss of your own laws, and limits are on what they take to serve:
#
# ```sh
# isoflop choose --records own/ladder/ladder.jsonl --memory 10MB --out report/choice.html
# ```
#
# Or with a table of models that you can have: `isoflop choose models.csv --p95 2 --per-query
# 0.001`.
