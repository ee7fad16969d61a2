"""Hierarchical VAE surrogates of parametric simulations."""
