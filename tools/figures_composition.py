"""The pictures of the help pages of SuperDiff."""

FIGURES = {}
