"""What a run logged, as columns and as curves of them."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.pages.page import Html
from pipeline.pages.plot import Series, line_plot

Line = dict[str, Any]
TITLES = {
    "rpn_class": "Proposals: person or not",
    "rpn_box": "Proposals: box",
    "roi_class": "Regions: person or not",
    "roi_box": "Regions: box",
    "oim": "Identity matching (OIM)",
    "instance": "Instance discrimination of unlabelled people",
    "similarity": "View similarity (L_con)",
}
SMOOTHED_SHARE = 15
"""Curves are smoothed over a fifteenth of the lines."""


class Curves:
    """Columns of the metrics, NaN where a line has no value."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self.lines = lines
        self.steps = np.array([line["step"] for line in lines], np.float64)
        self.window = max(1, len(lines) // SMOOTHED_SHARE)

    def names(self, group: str) -> list[str]:
        """Known losses in the order of TITLES, whatever else there is after them."""
        found = dict.fromkeys(name for line in self.lines for name in line.get(group, {}))
        return [name for name in TITLES if name in found] + [n for n in found if n not in TITLES]

    def column(self, name: str, group: str | None = None) -> NDArray[np.float64]:
        rows = [line.get(group) or {} for line in self.lines] if group else self.lines
        values = [row.get(name) for row in rows]
        return np.array([math.nan if value is None else value for value in values], np.float64)

    def oim_per_row(self) -> NDArray[np.float64]:
        """OIM over the entropy of guessing among the active rows of its tables."""
        active = self.column("active_rows", "statistics")
        chance = np.log1p(active)
        return self.column("oim", "losses") / np.where(chance > 0, chance, math.nan)

    def plot(self, title: str, *series: tuple[str, NDArray[np.float64]], **options: Any) -> Html:
        drawn = [Series(name, self.steps, values) for name, values in series]
        return line_plot(title, drawn, **{"smooth": self.window, **options})


def task_words(task: str) -> str:
    return {"detection": "detection", "reid": "re-ID", "inter_task": "between the tasks"}.get(
        task, task
    )
