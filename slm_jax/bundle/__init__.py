"""Trained adapters as small folders: `load` puts one between its frozen bases."""

from slm_jax.bundle.loading import Bundle, load

__all__ = ["Bundle", "load"]
