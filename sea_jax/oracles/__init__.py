"""Preference oracles: who answers which of two responses is better, and how labels are drawn."""
