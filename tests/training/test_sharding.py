"""Mesh, axis rules, batch size."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

from slm_jax.errors import UserError
from slm_jax.models import partitioning
from slm_jax.training import sharding
from slm_jax.training.sharding import MeshConfig, make_mesh


def test_minus_one_takes_the_devices_that_are_left():
  assert dict(make_mesh(MeshConfig()).shape) == {"data": 8, "fsdp": 1, "tensor": 1}
  assert dict(make_mesh(MeshConfig(data=2, fsdp=-1, tensor=2)).shape) == {
    "data": 2,
    "fsdp": 2,
    "tensor": 2,
  }


@pytest.mark.parametrize("sizes", [{"data": 3}, {"data": 4}, {"data": -1, "tensor": 3}])
def test_mesh_that_does_not_fit_is_refused(sizes):
  with pytest.raises(UserError, match="8 devices"):
    make_mesh(MeshConfig(**sizes))


def test_axis_without_a_rule_is_an_error():
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  with pytest.raises(ValueError, match="embedd"):
    partitioning.resolve(("embedd", "mlp"), (8, 8), mesh)
  with pytest.raises(ValueError, match="no logical axis names"):
    partitioning.parameter_shardings({"a": jax.ShapeDtypeStruct((2,), jnp.float32)}, mesh)


def test_axes_follow_the_rules_unless_sizes_do_not_divide():
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  assert partitioning.resolve(("embed", "mlp"), (8, 8), mesh) == PartitionSpec("fsdp", "tensor")
  assert partitioning.resolve(("embed", "mlp"), (7, 8), mesh) == PartitionSpec(None, "tensor")
  assert partitioning.resolve(("mlp", "joined_kv"), (8, 8), mesh) == PartitionSpec("tensor", None)


def test_boxed_parameters_get_named_shardings():
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  kernel_init = nn.with_logical_partitioning(nn.initializers.ones, ("embed", "mlp"))
  boxed = jax.eval_shape(
    lambda: nn.Dense(8, use_bias=False, kernel_init=kernel_init).init(
      jax.random.key(0), jnp.ones((1, 4))
    )
  )
  found = partitioning.parameter_shardings(boxed, mesh)
  assert found["params"]["kernel"].spec == PartitionSpec("fsdp", "tensor")


@pytest.mark.parametrize(
  ("batch", "micro", "good"), [(16, 1, True), (12, 1, False), (16, 4, False)]
)
def test_batch_must_divide(batch, micro, good):
  mesh = make_mesh(MeshConfig())
  if good:
    sharding.check_batch_size(batch, mesh, micro)
  else:
    with pytest.raises(UserError, match=f"BATCH_SIZE={batch}"):
      sharding.check_batch_size(batch, mesh, micro)
