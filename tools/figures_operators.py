"""The pictures of the help pages of operators and measurements."""

FIGURES = {}
