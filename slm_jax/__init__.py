"""SLM in JAX: a frozen speech encoder and a frozen T5-family LM, joined by a small trained adapter."""

__version__ = "0.1.0"
