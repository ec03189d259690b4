"""Trained adapters as small folders: `load` puts one between its frozen bases."""

from slm_jax.bundle.loading import Answer, Bundle, load

__all__ = ["Answer", "Bundle", "load"]
