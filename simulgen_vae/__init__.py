"""Hierarchical VAE surrogates of parametric simulations (to come)."""
