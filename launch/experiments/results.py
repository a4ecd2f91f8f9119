"""Records -> the tables of docs/results.md, between their marks; the words around them are people's."""

import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from scipy.stats import t as student

from launch.experiments.figures import draw_curve, draw_tier
from launch.experiments.numbers import Numbers
from launch.experiments.records import Records
from launch.experiments.settings import ClaimConfig, Experiment, TierConfig
from pipeline.errors import UserError
from training.files import write_atomically

PAGE = "results.md"
COLUMNS = {
    "mAP": "mAP",
    "top1": "top-1",
    "annotated_mAP": "mAP, annotated boxes",
    "detection_ap": "detection AP",
    "searched_recall": "people found",
}
"""Number of a record -> what it is called in a table."""
REFERENCE = "whole"
"""Arm that each is set beside, in the worlds that both have run in."""
CONFIDENCE = 0.95


def write_results(experiment: Experiment, records: Records, docs: Path) -> Path:
    """Returns the page. Raises UserError if it has lost a mark."""
    numbers = Numbers.read(experiment, records)
    page = docs / PAGE
    text = page.read_text()
    for name, tier in experiment.config.tiers.items():
        if _has_run(tier, numbers):
            draw_tier(tier, numbers, docs / f"results/{name}.svg")
        text = _between(text, name, "\n".join(_tier(name, tier, numbers)))
    shares = experiment.config.tiers["B"]
    if _has_run(shares, numbers) and draw_curve(shares, numbers, docs / "results/fractions.svg"):
        text = _between(text, "fractions", "![mAP by share of the target](results/fractions.svg)")
    write_atomically(page, text)
    return page


def write_domains(table: str, docs: Path) -> Path:
    page = docs / PAGE
    write_atomically(page, _between(page.read_text(), "domains", table))
    return page


def _between(text: str, name: str, content: str) -> str:
    begin, end = f"<!-- {name} begins -->", f"<!-- {name} ends -->"
    pattern = re.compile(f"{begin}.*?{end}", re.DOTALL)
    if not pattern.search(text):
        raise UserError(f"docs/{PAGE} has no `{begin}` and `{end}`: put them back.")
    return pattern.sub(lambda _: f"{begin}\n{content}\n{end}", text)


def _has_run(tier: TierConfig, numbers: Numbers) -> bool:
    return any(numbers.of(arm, "mAP", tier.worlds) for arm in tier.own)


def _tier(name: str, tier: TierConfig, numbers: Numbers) -> Iterator[str]:
    if not _has_run(tier, numbers):
        yield f"Nothing of tier {name} has run yet."
        return
    run = [arm for arm in tier.arms if numbers.of(arm, "mAP", tier.worlds)]
    yield from _means(run, tier, numbers)
    yield ""
    yield from _worlds(run, tier, numbers)
    if missing := [f"`{arm}`" for arm in tier.arms if arm not in run]:
        yield f"\nNot run yet: {', '.join(missing)}."
    if tier.claims:
        yield ""
        yield from _claims(tier, numbers)
    stale = f" {numbers.stale} records of other settings are left out." if numbers.stale else ""
    yield f"\n{numbers.origins(tier.arms, tier.worlds)}{stale}"
    yield f"\n![mAP of each arm in each world](results/{name}.svg)"


def _means(arms: Sequence[str], tier: TierConfig, numbers: Numbers) -> Iterator[str]:
    mAP, *others = COLUMNS
    names = [COLUMNS[mAP], f"beside `{REFERENCE}`", *(COLUMNS[name] for name in others)]
    yield f"| arm | worlds | mAP after half the steps | {' | '.join(names)} |"
    yield "|---|---|---|" + "---|" * len(names)
    reference = numbers.of(REFERENCE, mAP, tier.worlds)
    for arm in arms:
        says = numbers.experiment.config.arms[arm].says
        half = mean(numbers.of(arm, mAP, tier.worlds, 0))
        end = numbers.of(arm, mAP, tier.worlds)
        rest = [mean(numbers.of(arm, name, tier.worlds)) for name in others]
        cells = [half, mean(end), "-" if arm == REFERENCE else _beside(end, reference), *rest]
        yield f"| `{arm}`: {says} | {len(end)} | {' | '.join(cells)} |"


def _beside(values: dict[int, float], reference: dict[int, float]) -> str:
    """Mean difference over the worlds of both."""
    both = values.keys() & reference.keys()
    return f"{statistics.mean(values[w] - reference[w] for w in both):+.1f}" if both else "-"


def mean(values: dict[int, float]) -> str:
    """With the standard deviation over worlds."""
    found = list(values.values())
    if not found:
        return "-"
    spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.1f}{spread}"


def _worlds(arms: Sequence[str], tier: TierConfig, numbers: Numbers) -> Iterator[str]:
    yield f"| mAP in world | {' | '.join(map(str, range(tier.worlds)))} |"
    yield "|---|" + "---|" * tier.worlds
    for arm in arms:
        values = numbers.of(arm, "mAP", tier.worlds)
        cells = [f"{values[w]:.1f}" if w in values else "-" for w in range(tier.worlds)]
        yield f"| `{arm}` | {' | '.join(cells)} |"


def _claims(tier: TierConfig, numbers: Numbers) -> Iterator[str]:
    yield "| claim | worlds | mean difference in mAP, 95 % interval | relative | outcome |"
    yield "|---|---|---|---|---|"
    for claim in tier.claims:
        yield f"| {_name(claim)} | {' | '.join(compare(claim, numbers.of))} |"
    later = [f"{_name(claim)}: {claim.added}" for claim in tier.claims if claim.added]
    if later:
        yield f"\nAdded after numbers had been seen: {'; '.join(later)}."


def _name(claim: ClaimConfig) -> str:
    return f"`{claim.better}` > `{claim.than}`"


def compare(claim: ClaimConfig, of: Callable[..., dict[int, float]]) -> Sequence[str]:
    """Worlds, paired difference with its interval by Student's t, relative gain, and what it says."""
    better, than = (of(arm, "mAP", claim.worlds) for arm in (claim.better, claim.than))
    both = sorted(better.keys() & than.keys())
    if len(both) < 2:
        return (f"{len(both)} of {claim.worlds}", "-", "-", "too few worlds")
    differences = [better[world] - than[world] for world in both]
    middle, spread = statistics.mean(differences), statistics.stdev(differences)
    reach = student.ppf((1 + CONFIDENCE) / 2, len(both) - 1) * spread / len(both) ** 0.5
    base = statistics.mean(than[world] for world in both)
    outcome = "holds" if middle > reach else "contradicted" if middle < -reach else "not shown"
    if len(both) < claim.worlds:
        outcome = "too few worlds"
    return (
        f"{len(both)} of {claim.worlds}",
        f"{middle:+.1f} ({middle - reach:+.1f} to {middle + reach:+.1f})",
        f"{middle / base:+.0%}" if base else "-",
        outcome,
    )
