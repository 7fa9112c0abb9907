"""The examples of FlowChef and its losses."""

EXAMPLES = {}
