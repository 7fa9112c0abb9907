"""JSON from outside, without the numbers that are not finite and the depth that Python's reader lets pass."""

import json
import math
from collections.abc import Callable

MAX_DEPTH = 200
"""Lists and objects in each other; saved graphs have about ten. Far below what recursive code can follow."""


class BadJSON(ValueError):
    """Why a text is refused, to be put behind its name: "is no JSON: ...", "holds ..."."""


class NoJSON(BadJSON):
    """The text is not JSON at all."""


def _refuse(number: str) -> None:
    raise BadJSON(f"holds the number {number[:40]}; numbers have to be finite")


def _finite(number: str) -> float:
    value = float(number)
    return value if math.isfinite(value) else _refuse(number)


def parse(text: str, constant: Callable = _refuse):
    """The value of a JSON text; `constant` is called with "NaN", "Infinity" or "-Infinity". Raises BadJSON."""
    try:
        value = json.loads(text, parse_constant=constant, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise NoJSON(f"is no JSON: {error.msg} in line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise _too_deep() from None
    except BadJSON:
        raise
    except ValueError as error:  # Python reads whole numbers up to some thousand digits
        raise BadJSON(f"holds a number that is too long ({error})") from None
    level, depth = [value], 0
    while level := [item for one in level if isinstance(one, (dict, list))
                    for item in (one.values() if isinstance(one, dict) else one)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise _too_deep()
    return value


def _too_deep() -> BadJSON:
    return BadJSON(f"is nested too deeply (more than {MAX_DEPTH} lists and objects in each other)")
