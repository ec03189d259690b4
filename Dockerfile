# The image of a pod's job: the checkout, its locked dependencies and JAX for TPUs. `slm_jax launch --build` makes it.
FROM python:3.11-slim

WORKDIR /slm_jax

# Dependencies first: a change of the code does not install them again.
COPY constraints.txt setup.py pyproject.toml README.md ./
COPY slm_jax/__init__.py slm_jax/__init__.py
# The last one for TensorBoard's files in a bucket.
RUN pip install --no-cache-dir --constraint constraints.txt --editable ".[mini]" "jax[tpu]" google-cloud-storage

COPY . .

CMD ["slm_jax", "--help"]
