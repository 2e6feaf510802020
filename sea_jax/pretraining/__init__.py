"""Training that comes before a run: SFT, reward models, the miniature's backbone and prior heads."""
