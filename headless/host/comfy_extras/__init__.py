"""Core nodes outside `nodes`: each module is loaded as the host loads a pack."""
