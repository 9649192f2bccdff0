"""Experiments for the tests of sweeps."""
