"""train.jsonl: resumed runs leave one line a step, kills leave readable files."""

from slm_jax.training.scalars import ScalarWriter, read_scalars


def test_resuming_drops_lines_past_the_checkpoint(tmp_path):
  writer = ScalarWriter(tmp_path, start_step=0)
  for step in (1, 2, 3, 4):
    writer.write(step, {"loss": float(step)})
  writer.close()
  writer = ScalarWriter(tmp_path, start_step=2)
  writer.write(3, {"loss": 30.0})
  writer.close()
  assert [(x["step"], x["loss"]) for x in read_scalars(tmp_path / "train.jsonl")] == [
    (1, 1.0),
    (2, 2.0),
    (3, 30.0),
  ]


def test_a_line_cut_short_is_left_out(tmp_path):
  (tmp_path / "train.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
  assert [x["step"] for x in read_scalars(tmp_path / "train.jsonl")] == [1]


def test_no_file_is_no_lines(tmp_path):
  assert read_scalars(tmp_path / "train.jsonl") == []
