"""Prompt weights: `(words:1.3)` and nested parentheses."""

_NESTING = 1.1  # weight of one pair of parentheses
_ESCAPED = {"\\)": "\0\1", "\\(": "\0\2"}


def escape_important(text):
    """Hide escaped parentheses from the weight parser."""
    for escaped, hidden in _ESCAPED.items():
        text = text.replace(escaped, hidden)
    return text


def unescape_important(text):
    """Bring hidden parentheses back, without their backslash."""
    for escaped, hidden in _ESCAPED.items():
        text = text.replace(hidden, escaped[1])
    return text


def _top_level_groups(text):
    """The text cut before and after each outermost pair of parentheses."""
    depth = start = 0
    for i, letter in enumerate(text):
        if letter == "(":
            if depth == 0 and i > start:
                yield text[start:i]
                start = i
            depth += 1
        elif letter == ")":
            depth -= 1
            if depth == 0:
                yield text[start:i + 1]
                start = i + 1
    if start < len(text):
        yield text[start:]


def token_weights(string, current_weight):
    """[(text, weight), ...]: parentheses weigh 1.1 times their surroundings, or what follows their last colon."""
    found = []
    for group in _top_level_groups(string):
        if len(group) < 2 or group[0] != "(" or group[-1] != ")":
            found.append((group, current_weight))
            continue
        inner, weight = group[1:-1], current_weight * _NESTING
        words, colon, number = inner.rpartition(":")
        if colon and words:
            try:
                inner, weight = words, float(number)
            except ValueError:
                pass  # a colon in plain text
        found += token_weights(inner, weight)
    return found
