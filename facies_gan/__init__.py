"""Facies realisations that honour wells, from a multi-scale GAN."""
