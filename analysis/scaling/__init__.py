"""Scaling laws of looped models: laws as data, two fitters, bootstrap over trunks, held-out error, the loop term."""
