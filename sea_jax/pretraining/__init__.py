"""Training before a run: SFT, reward models, the embedded task's backbone and prior heads."""
