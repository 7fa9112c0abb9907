"""The examples of SuperDiff."""

EXAMPLES = {}
