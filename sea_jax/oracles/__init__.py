"""Preference oracles: which of two responses is better, and how labels are drawn from that."""
