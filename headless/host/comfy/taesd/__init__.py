"""The tiny autoencoder's network."""
