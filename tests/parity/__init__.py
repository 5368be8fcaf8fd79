"""The library against the real PyTorch: the same numbers in, the same numbers out."""
