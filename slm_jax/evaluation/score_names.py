"""What systems, metrics and rates are called in reports."""

SYSTEM_NAMES = {
  "slm": "SLM (speech + instruction)",
  "ctc": "Speech encoder's own CTC",
  "cascade": "Cascade (CTC text into the LM)",
  "oracle": "Text oracle (LM + correct transcript)",
  "shuffled": "SLM on another recording",
  "silenced": "SLM on silence",
}
METRIC_NAMES = {
  "wer": "WER",
  "cer": "CER",
  "bleu": "BLEU",
  "chrf": "chrF",
  "exact": "Exact",
  "f1": "F1",
  "b_wer": "B-WER",
  "u_wer": "U-WER",
  "jga": "JGA",
  "followed": "Followed",
  "refused": "Refused",
  "looped": "Looped",
  "empty": "Empty",
  "inserted": "Inserted on silence",
}
