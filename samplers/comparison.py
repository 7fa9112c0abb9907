"""What a comparison of samplers measures: distance to a fine reference against network calls, and its order."""

import csv
import io
import math
import re
from collections import Counter
from dataclasses import dataclass, fields

import numpy as np
import torch

CLOSE = 1e-3
"""Two runs that differ in the seed alone and lie closer than this have no fresh noise (rounding is far below)."""
FINER = 4
"""A reference has to have this many times the calls of the longest run, so that its own error does not show."""


@dataclass(frozen=True)
class Run:
    """One run of one sampler. calls: of the (guided) model. error: why there is no distance."""

    sampler: str
    steps: int
    calls: int = 0
    distance: float = math.nan
    stochastic: bool = False
    error: str = ""


def distance(x, reference):
    """Distance of x [B, ...] to the reference of the same shape: RMS over an item in units of the standard deviation
    of that item's reference, median over the items. Not finite where x is not, or where the reference is constant.
    """
    if x.shape != reference.shape:
        raise ValueError(f"the sampler returned a latent of shape {list(x.shape)}; the reference's is "
                         f"{list(reference.shape)}. Use a sampler that keeps the shape")
    x, reference = (t.detach().flatten(1).cpu().double() for t in (x, reference))
    rms = (x - reference).square().mean(1).sqrt() / reference.std(1, correction=0)
    return float(np.median(rms.numpy()))


def fitted_order(runs):
    """The p of distance = c calls^(-p), least squares in the logarithms; nan below two numbers of calls.

    Runs without a positive finite distance do not count.
    """
    points = [(r.calls, r.distance) for r in runs if r.calls > 0 and 0 < r.distance < math.inf]
    if len({calls for calls, _ in points}) < 2:
        return math.nan
    calls, distances = np.log(np.array(points)).T
    return -float(np.polyfit(calls, distances, 1)[0])


def parse_steps(text):
    """The step counts of a text such as '5, 8, 10', sorted, each once. Raises ValueError for anything else."""
    words = [word for word in re.split(r"[,;\s]+", text) if word]
    if not words or not all(word.isdecimal() and 1 <= int(word) <= 10000 for word in words):
        raise ValueError(f"steps is {text!r}; it must be whole numbers from 1 to 10000, such as 5, 8, 10")
    return sorted({int(word) for word in words})


def labels(recipes, names):
    """One label a sampler: its name in `names`, or its function's, with what sets it apart from its namesakes.

    recipes: list of (function name, options). names: text, entries separated by commas or lines, an empty entry for the
    default. Raises ValueError for more names than samplers. Equal labels are numbered.
    """
    given = [name.strip() for name in re.split(r"[,\n]", names)] if names.strip() else []
    given = given[:-1] if given and not given[-1] else given  # a closing comma or line break names nothing
    if len(given) > len(recipes):
        raise ValueError(f"names has {len(given)} entries, but {len(recipes)} samplers are connected; remove "
                         f"{', '.join(map(repr, given[len(recipes):]))} or connect a sampler for it")
    given += [""] * (len(recipes) - len(given))
    made = [name or _described(recipe, recipes) for name, recipe in zip(given, recipes, strict=True)]
    total, seen, numbered = Counter(made), Counter(), []
    for label in made:
        unique = label
        while total[label] > 1 and (unique == label or unique in total or unique in numbered):
            seen[label] += 1
            unique = f"{label} ({seen[label]})"
        numbered.append(unique)
    return numbered


def _described(recipe, recipes):
    """The function's name and the options in which the recipes of that name differ."""
    name, options = recipe
    namesakes = [other for function, other in recipes if function == name]
    words = [
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in options.items()
        if isinstance(value, str | int | float) and any(other.get(key) != value for other in namesakes)
    ]
    return " ".join([name.removeprefix("sample_"), *words])


def reference_sigmas(fine, first):
    """The schedule of the reference: `first`, the sigma at which the runs start, then those of `fine` below it.

    Both 1-D, falling; so the reference solves the very problem of the run, where a partial denoise or a schedule makes
    the start depend on the number of steps.
    """
    return torch.cat([first.reshape(1), fine[fine < first]])


def table(runs, reference_steps):
    """The runs as an aligned table, the fitted order in the first row of a sampler, with a heading on the reference."""
    longest = max(run.calls for run in runs)
    heading = (f"Distance to a reference of {reference_steps} steps of DPM-Solver of order 3, in units of the "
               "reference's standard deviation, median over the batch.")
    if reference_steps < FINER * longest:
        heading += (f" The reference is hardly finer than the longest run ({longest} calls): raise reference_steps to "
                    f"{FINER * longest} or more.")
    rows = [("sampler", "steps", "calls", "distance", "order", "note")]
    for i, run in enumerate(runs):
        order, note = "", run.error
        if i == 0 or runs[i - 1].sampler != run.sampler:
            own = [r for r in runs if r.sampler == run.sampler]
            if any(r.stochastic for r in own):
                note = note or "fresh noise: the distance does not go to 0"
            elif math.isfinite(fitted := fitted_order(own)):
                order = f"{fitted:.2f}"
        shown = "" if run.error else f"{run.distance:.3g}"
        rows.append((run.sampler, str(run.steps), str(run.calls), shown, order, note))
    rows = [[cell.replace("|", "/").replace("\n", " ") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numbers = (False, True, True, True, True, False)
    body = ["| " + " | ".join(cell.rjust(width) if right else cell.ljust(width)
                              for cell, width, right in zip(row, widths, numbers, strict=True)) + " |" for row in rows]
    rule = "|".join("-" * (width + 1) + ":" if right else "-" * (width + 2)
                    for width, right in zip(widths, numbers, strict=True))
    return "\n".join([heading, "", body[0], f"|{rule}|", *body[1:]])


def to_csv(runs):
    """The runs as CSV text with a header, one line a run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [field.name for field in fields(Run)]
    writer.writerow(columns)
    writer.writerows([getattr(run, column) for column in columns] for run in runs)
    return text.getvalue()


def lines(runs):
    """The runs as series of a chart: [(name with the order, calls, distances)], one a sampler in the order of runs."""
    series = []
    for name in dict.fromkeys(run.sampler for run in runs):
        own = [run for run in runs if run.sampler == name]
        order = fitted_order(own)
        if all(run.error for run in own):
            note = "failed"
        elif any(run.stochastic for run in own):
            note = "fresh noise"
        else:
            note = f"order {order:.2f}" if math.isfinite(order) else ""
        points = sorted((run.calls, run.distance) for run in own if not run.error)
        series.append((f"{name} ({note})" if note else name, [c for c, _ in points], [d for _, d in points]))
    return series
