"""The report's curves of what a run says beside its losses."""

import re
from html import unescape
from typing import Any

from launch.reporting.curves import Curves
from launch.reporting.health import gradient_plots, health_plots


def lines_with(*names: str, count: int = 20) -> list[dict[str, Any]]:
    """A statistic's values are its place in `names`, and grow."""
    return [
        {
            "step": step,
            "grad_norm": 3.0,
            "statistics": {name: place + step / count for place, name in enumerate(names)},
        }
        for step in range(1, count + 1)
    ]


def shown(plots: list[str]) -> dict[str, list[str]]:
    """Title of each plot -> what its legend names."""
    found = {}
    for plot in plots:
        title = re.search(r"<figcaption>(.*?)</figcaption>", plot)
        assert title is not None, plot[:200]
        names = re.findall(r"<li>.*?>([^<>]+)</li>", plot)
        found[unescape(title.group(1))] = [unescape(name) for name in names]
    return found


def test_each_group_of_statistics_has_a_plot() -> None:
    names = [
        "proposal_recall_scenes",
        "proposal_recall_canvases",
        "domain_reid_accuracy",
        "domain_reid_accuracy/msmt17",
        "domain_reid_accuracy/cuhk03",
        "domain_reid_accuracy/luperson",
        "domain_reid_image_accuracy",
        "domain_reid_image_accuracy/msmt17",
        "domain_reid_chance",
        "queue_age_mean",
        "queue_age_max",
        "grad_norm/trunk",
        "skipped_steps",
        "foreground_rois",
        "active_rows",
        "of_tomorrow",
    ]
    found = shown(health_plots(Curves(lines_with(*names))))
    assert found == {
        "Share of the persons that a proposal covers, IoU 0.5": ["scenes", "canvases", "all"],
        "Age of the queue's embeddings, in steps": ["mean", "max"],
        "Domain classifier's accuracy, re-ID": ["instances", "images", "naming the commonest"],
        "Instances of each dataset told right, re-ID": [
            "msmt17",
            "cuhk03",
            "luperson",
            "their mean, by chance",
        ],
        "Identities and queue slots that OIM compares with": [],
        "Share of the sampled regions that show a person": [],
        "Steps left out since the start, as not finite": [],
        "Of tomorrow": [],
    }


def test_a_run_from_before_a_statistic_was_kept_is_drawn_without_it() -> None:
    assert list(shown(health_plots(Curves(lines_with("domain_reid_accuracy"))))) == [
        "Domain classifier's accuracy, re-ID"
    ]
    assert health_plots(Curves(lines_with())) == []


def test_gradients_of_the_parts_are_drawn_beside_the_whole() -> None:
    found = shown(gradient_plots(Curves(lines_with("grad_norm/trunk", "grad_norm/rpn"))))
    assert found == {
        "Gradient norm, before clipping": [],
        "Gradient norm by part, as a power of ten": ["trunk", "rpn"],
    }
    lines = lines_with("grad_norm/rpn")
    lines[3]["statistics"]["grad_norm/rpn"] = 0.0
    assert "1 values left out" in gradient_plots(Curves(lines))[1]
    assert len(gradient_plots(Curves(lines_with()))) == 1
