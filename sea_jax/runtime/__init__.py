"""What a run stands on: metrics."""
