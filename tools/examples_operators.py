"""The examples of operators and measurements."""

EXAMPLES = {}
