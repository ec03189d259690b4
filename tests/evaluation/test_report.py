"""The report: one page, everything in it, nothing from outside, all text escaped."""

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile

from slm_jax.evaluation import report, runner, score_sections
from slm_jax.evaluation.bootstrap import Resampling
from slm_jax.evaluation.loss_curve import loss_curve_svg
from slm_jax.evaluation.report import ReportDemo, ReportSample, RunSummary
from slm_jax.evaluation.runner import Prediction, TaskEvaluation

SUMMARY = RunSummary(
  title="Mini <run> & more",
  trained_parameters=1_000_000,
  frozen_parameters=9_000_000,
  steps=1_500,
  wall_seconds=412.0,
  memory_bytes=700 * 2**20,
  details={"Device": "cpu"},
)
LOG = [{"step": step, "loss": 6.0 / step} for step in range(1, 60)]


def _task(task: str, kind: str, texts: dict[str, str], target: str) -> TaskEvaluation:
  predictions = tuple(
    Prediction(
      id=str(i),
      instruction=f"instruction {i}",
      transcript="said",
      target=target,
      language=language,
      target_language="",
      voice=f"voice {i}",
      seconds=1.0,
      score=-1.0,
      texts=texts,
      shuffled_with=None,
    )
    for i, language in enumerate(("en", "de"))
  )
  return TaskEvaluation(
    task=task,
    kind=kind,
    **runner.scored(kind, predictions, "basic-1", Resampling(resamples=20)),
    predictions=predictions,
    audio_seconds=2.0,
    seconds=dict.fromkeys(texts, 0.5),
    first_batch_seconds=0.1,
  )


def _evaluations() -> list[TaskEvaluation]:
  said = "one two three four five"
  repeat = {"slm": said, "ctc": "one two three four", "oracle": said, "shuffled": "no no"}
  translate = {"slm": "one two three four", "oracle": said, "shuffled": said}
  return [
    _task("asr_a", "transcription", repeat, said),
    _task("ast_a", "translation", translate, said),
    _task("question_a", "answer", {"slm": "red", "oracle": "red"}, "red"),
  ]


def _noise(seconds: float, seed: int = 0) -> np.ndarray:
  rng = np.random.default_rng(seed)
  return rng.integers(-9_000, 9_000, int(16_000 * seconds)).astype(np.int16)


def _page(tmp_path, **changes) -> str:
  evaluations = _evaluations()
  arguments = {
    "summary": SUMMARY,
    "train_log": LOG,
    "evaluations": evaluations,
    "samples": [
      ReportSample.of(task.task, prediction, _noise(0.2, i))
      for task in evaluations
      for i, prediction in enumerate(task.predictions)
    ],
    "demos": [ReportDemo(audio_name="a.wav", instruction="Answer.", prediction="blue")],
  } | changes
  path = tmp_path / "folder" / "report.html"
  report.write_report(path, **arguments)
  assert [file.name for file in path.parent.iterdir()] == ["report.html"]
  return path.read_text(encoding="utf-8")


class _Balance(HTMLParser):
  """Checks that every element is closed in order."""

  VOID = ("meta", "br", "path", "use", "rect")

  def __init__(self, page: str):
    super().__init__()
    self.open, self.urls = [], []
    self.feed(page)
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.urls += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    if tag not in self.VOID:
      assert self.open.pop() == tag

  def handle_startendtag(self, tag, attrs):
    self.urls += [value for name, value in attrs if name in ("src", "href", "xlink:href")]


def test_the_page_is_well_formed_and_loads_nothing(tmp_path):
  page = _page(tmp_path)
  urls = _Balance(page).urls
  assert urls and all(url.startswith(("data:audio/", "#")) for url in urls)
  assert "<script" not in page and "@import" not in page and "<link" not in page
  assert not re.search(r"url\((?!#)", page)


def test_the_page_holds_the_run(tmp_path):
  page = _page(tmp_path)
  for text in ("1.00 M", "10.00 %", "9.00 M", "1,500", "6 min 52 s", "700 MiB", "cpu", "<svg"):
    assert text in page
  for task in ("asr_a", "ast_a", "question_a"):
    assert f"<h3>{task}</h3>" in page
  assert "normaliser basic-1" in page and "tok:13a" in page
  assert "WER de" in page and "BLEU en" in page


def test_every_sample_and_demo_is_there_with_its_sound(tmp_path):
  page = _page(tmp_path)
  samples = page[page.index("Held-out samples") :]
  assert samples.count("<article") == samples.count("<audio controls") == 6
  assert samples.count("instruction 0") == samples.count("voice 1") == 3
  assert '<dd class="answer">blue</dd>' in page
  first = re.search(r'src="data:audio/flac;base64,([^"]+)"', samples)
  assert first is not None
  audio, rate = soundfile.read(io.BytesIO(base64.b64decode(first[1])), dtype="int16")
  assert rate == 16_000
  np.testing.assert_array_equal(audio, _noise(0.2))


def test_text_is_escaped_everywhere(tmp_path):
  evil = "<script>alert('x')</script>&\"\ud800"
  sample = ReportSample(
    task=evil,
    audio=_noise(0.1),
    language=evil,
    target_language=evil + "2",
    voice=evil,
    instruction=evil,
    reference=evil,
    texts={"slm": evil + " more", "ctc": evil},
  )
  demo = ReportDemo(audio_name=evil, instruction=evil, prediction=evil)
  evaluations = [dataclasses.replace(task, task=evil) for task in _evaluations()]
  summary = dataclasses.replace(SUMMARY, title=evil, details={evil: evil})
  page = _page(tmp_path, summary=summary, samples=[sample], demos=[demo], evaluations=evaluations)
  assert "<script" not in page
  assert page.count("&lt;script&gt;") > 15
  _Balance(page)


def test_findings_follow_the_numbers():
  text = score_sections.findings(_evaluations())
  findings = re.findall(r'<span class="badge (?:good|bad)">([^<]+)</span><span>([^<]+)', text)
  assert [(verdict, text.split(" (95 %")[0]) for verdict, text in findings] == [
    ("holds", "asr_a: WER 0.0 against 20.0 of the speech encoder's CTC"),
    ("holds", "asr_a, is it listening? WER 100.0 on another recording, 100.0 worse"),
    ("does not hold", "ast_a: BLEU 77.9, 77.9 % of the text oracle's 100.0"),
    ("does not hold", "ast_a, is it listening? BLEU 100.0 on another recording, \u221222.1 worse"),
    ("holds", "question_a: Exact 100.0, 100.0 % of the text oracle's 100.0"),
  ]


def test_scores_are_plotted_with_intervals_rates_and_agreement(tmp_path):
  page = _page(tmp_path, samples=[], demos=[], train_log=[])
  assert page.count('aria-label="WER with 95 % intervals"') == 1
  assert page.count("<svg") == 3 and page.count("Behaviour, percent") == 3
  assert 'title="95 %: ' in page and "against the text oracle" in page


def test_words_that_differ_are_marked(tmp_path):
  marked = report._marked("The cat sat, there", "the <b>dog sat there now")
  assert marked == "the <mark>&lt;b&gt;dog</mark> sat there <mark>now</mark>"
  assert report._marked("a", "") == "<mark>(empty)</mark>"


def test_the_audio_stays_in_its_budget_and_the_page_says_what_it_left_out(tmp_path, monkeypatch):
  assert report._AUDIO_BUDGET < 4.5e6  # of a page below 5 MB
  monkeypatch.setattr(report, "_AUDIO_BUDGET", 100_000)
  sample = ReportSample(
    task="t",
    audio=_noise(1),
    language="en",
    target_language="",
    voice="v",
    instruction="i",
    reference="r",
    texts={"slm": "r"},
  )
  page = _page(tmp_path, samples=[sample] * 2, evaluations=[])
  assert page.count("data:audio/flac") == 2
  page = _page(tmp_path, samples=[sample] * 4, evaluations=[])  # as FLAC 160,000
  assert page.count("data:audio/mpeg") == 4
  assert sum(map(len, re.findall(r"base64,([^\"]+)", page))) < 100_000
  hour = dataclasses.replace(sample, audio=np.zeros(3600 * 16_000, np.int16))
  page = _page(tmp_path, samples=[hour, sample], evaluations=[])
  assert "3600.0 s of audio left out" in page and page.count("<audio controls") == 1
  monkeypatch.setattr(report, "_AUDIO_BUDGET", 10_000)
  page = _page(tmp_path, samples=[sample] * 4, evaluations=[])
  assert page.count("1.0 s of audio left out") + page.count("<audio controls") == 4
  assert page.count("<audio controls") == 1


def test_an_empty_run_still_gives_a_page(tmp_path):
  page = _page(tmp_path, train_log=[], evaluations=[], samples=[], demos=[])
  _Balance(page)
  assert "Mini &lt;run&gt; &amp; more" in page and "<svg" not in page


@pytest.mark.parametrize(
  ("log", "drawn"),
  [
    ([], False),
    ([{"step": 1, "loss": 2.0}], False),
    ([{"step": 1, "loss": 2.0}, {"step": 2}, {"step": 3, "loss": float("nan")}], False),
    ([{"step": 1, "loss": 2.0}, {"step": 2}, {"step": 3, "loss": 1.0}], True),
    ([{"step": i, "loss": 0.0} for i in range(3)], True),
    ([{"step": i, "loss": 5.0} for i in range(20_000)], True),
  ],
)
def test_loss_curve_of_any_log(log, drawn):
  svg = loss_curve_svg(log)
  assert svg.startswith("<svg") == drawn
  assert len(svg) < 300_000


def test_loss_curve_takes_the_page_colours_and_is_reproducible():
  svg = loss_curve_svg(LOG)
  assert svg == loss_curve_svg(LOG)
  assert "var(--accent)" in svg and "#01020" not in svg
  head = svg[: svg.index(">")]
  assert "viewBox" in head and " width=" not in head and " height=" not in head
