"""Trainers of the bundled miniature models and the world of painted landscapes that they learn."""
