"""Autoregressive 3-D surrogate of geothermal reservoirs."""
