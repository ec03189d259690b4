"""`python -m slm_jax` is the console script `slm_jax`."""

from slm_jax.cli.main import console

console()
