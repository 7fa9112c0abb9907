"""What pictures need around a restoring network: tiles, borders, colours, normalisation across tiles."""
