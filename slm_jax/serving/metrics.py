"""What a server counts, in Prometheus's terms."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
  """Counters of one server, in a registry of its own."""

  def __init__(self):
    self.registry = CollectorRegistry()
    self.requests = Counter(
      "slm_jax_requests", "Requests answered.", ["endpoint", "status"], registry=self.registry
    )
    self.request_seconds = Histogram(
      "slm_jax_request_seconds",
      "Time from a request to the end of its answer.",
      ["endpoint"],
      buckets=(0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60),
      registry=self.registry,
    )
    self.audio_seconds = Counter(
      "slm_jax_audio_seconds", "Seconds of audio taken in.", registry=self.registry
    )
    self.tokens = Counter("slm_jax_tokens", "Tokens generated.", registry=self.registry)
    self.queue = Gauge("slm_jax_queue_rows", "Pieces of audio that wait.", registry=self.registry)
    self.batch_rows = Histogram(
      "slm_jax_batch_rows",
      "Pieces of audio in a batch.",
      buckets=(1, 2, 4, 8, 16, 32, 64),
      registry=self.registry,
    )
    self.batch_seconds = Histogram(
      "slm_jax_batch_seconds", "Time that a batch takes.", registry=self.registry
    )
    self.failed_batches = Counter(
      "slm_jax_failed_batches", "Batches that ended in an error.", registry=self.registry
    )
    self.compiled = Gauge(
      "slm_jax_compiled_programs", "Programs compiled so far.", registry=self.registry
    )
