"""The key steps of Faster Diffusion (Li et al., NeurIPS 2024, arXiv 2312.09608): where the whole network is run.

At the steps between, the encoder's features of the last key step are used again (Section 3.2 of the paper).
"""

import re
from dataclasses import dataclass

PAPER = (0, 1, 2, 3, 5, 10, 15, 25, 35)
"""The authors' list for 50 steps (their '50ls'): dense at the start, where the features change most."""
LEAST_STEPS = 8
"""Below this many steps a scaled PAPER would skip steps that its start calls indispensable."""
TOLERANCE = 1e-4


def paper(steps, interval, custom):
    """PAPER scaled to any number of steps; every step of a short run."""
    return range(steps) if steps < LEAST_STEPS else [round(k * steps / 50) for k in PAPER]


def uniform(steps, interval, custom):
    """Every `interval`-th step."""
    return range(0, steps, interval)


def pro(steps, interval, custom):
    """k (k + 3) / 2 for k = 0, 1, ...: gaps that grow by one, the authors' 'pro'."""
    return [k * (k + 3) // 2 for k in range(steps)]


def listed(steps, interval, custom):
    """The steps that `custom` lists, separated by commas or spaces."""
    return [int(word) for word in _words(custom)]


SCHEDULES = {"paper": paper, "uniform": uniform, "pro": pro, "custom": listed}


def _words(custom):
    return re.split(r"[\s,]+", custom.strip(" ,\n\t"))


def check_options(schedule, interval, custom, start_percent, end_percent):
    """Raises ValueError naming the input, its value and the fix."""
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule is {schedule!r}; choose one of {', '.join(SCHEDULES)}")
    if interval < 2:
        raise ValueError(f"interval is {interval}; it must be 2 or more, since 1 would skip nothing")
    if schedule == "custom" and not all(re.fullmatch(r"\d+", word) for word in _words(custom)):
        raise ValueError(f"custom is {custom!r}; list the key steps as whole numbers from 0 on, such as '0, 1, 2, 5, "
                         "10', or choose another schedule")
    if not start_percent <= end_percent:  # NaN, too
        raise ValueError(f"start_percent is {start_percent} and end_percent {end_percent}; the start must come first")


def key_steps(schedule, steps, interval=4, custom=""):
    """The key steps of a run as a frozenset of indices below `steps`. Step 0 always is one: nothing comes before it."""
    return frozenset(k for k in SCHEDULES[schedule](steps, interval, custom) if k < steps) | {0}


@dataclass(frozen=True)
class Timeline:
    """Where the calls of a sampler stand between the key steps of a run over `sigmas` (steps + 1 floats)."""

    sigmas: tuple[float, ...]
    keys: frozenset[int]

    def place(self, sigma):
        """(step, True) at a sigma of the schedule; between two of them, or at the last, (step that leads there, False).

        Second-order samplers also call between the sigmas of the schedule, or a second time at its next one.
        """
        last = max(len(self.sigmas) - 2, 0)
        nearest = min(range(len(self.sigmas)), key=lambda i: abs(self.sigmas[i] - sigma))
        if abs(self.sigmas[nearest] - sigma) <= TOLERANCE * sigma:
            return min(nearest, last), nearest <= last
        for i, (a, b) in enumerate(zip(self.sigmas, self.sigmas[1:], strict=False)):
            if min(a, b) < sigma < max(a, b):
                return i, False
        return min(nearest, last), False

    def key(self, step):
        """The last key step up to `step`."""
        return max(k for k in self.keys if k <= step)

    def skips(self, step):
        """Whether any call from this step to the next, or the next one itself, uses features again."""
        return not (step in self.keys and (step + 1 in self.keys or step + 1 >= len(self.sigmas) - 1))

    def skipped(self, step):
        """The steps after `step` and before the next key step."""
        following = [k for k in self.keys if k > step]
        return range(step + 1, min(following, default=len(self.sigmas) - 1))
