"""Prompt sets with references, and what is needed to turn their text into tokens."""
