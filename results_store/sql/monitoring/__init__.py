"""Figures for the operators of a fleet."""
