"""Samplers of responses (Alg. 2, lines 3 and 4): JAX in this process, a vLLM sidecar, or Ray actors."""
