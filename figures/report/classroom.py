"""The page of a class: what a student has left, the forms, the runs, the leaderboard.

It has no script and loads nothing; a form's answer is a page.
"""

from __future__ import annotations

from typing import Any

from isoflop.figures.report.page import environment


def page(values: dict[str, Any]) -> str:
    """The HTML of `classroom.html.j2`; every value is escaped."""
    return environment().get_template("classroom.html.j2").render(values)
