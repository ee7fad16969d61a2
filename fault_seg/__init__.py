"""Faults, dip, strike, relative geological time and a cleaner image from one seismic cube."""
