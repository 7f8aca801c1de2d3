"""Clustering of one field's rows into a codebook, as DEFINITIONS fixes it to the bit."""
