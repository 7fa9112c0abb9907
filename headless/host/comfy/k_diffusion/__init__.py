"""Samplers and sigma schedules in k-diffusion's signature."""
