"""Small illustrated landscapes: what they show (scene), in words (grammar), in paint (painter), read back (checker)."""
