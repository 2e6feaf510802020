"""The experiment's config: its fields and their meaning, its checks, and the flags that set it."""
