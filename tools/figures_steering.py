"""The pictures of the help pages of FlowChef and its losses."""

FIGURES = {}
