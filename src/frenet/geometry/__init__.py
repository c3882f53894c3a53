"""Tensors in, tensors out: bases, spectra, nulls."""
