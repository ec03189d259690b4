"""The style sheet of the report: light or dark as the reader has set, nothing from outside."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #f6f7f9; --card: #ffffff; --ink: #14181f; --ink-2: #5b6472; --line: #e3e6eb;
  --accent: #2b5fd9; --accent-soft: #e8effc; --good: #16794c; --good-soft: #e2f4ea;
  --bad: #b3382c; --bad-soft: #fbe7e4; --mark: #ffe1d6;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #0f1217; --card: #181c23; --ink: #e8ebf0; --ink-2: #98a2b3; --line: #2a303a;
    --accent: #7ea6ff; --accent-soft: #1d2a45; --good: #63d19a; --good-soft: #15301f;
    --bad: #ff9385; --bad-soft: #3a1c19; --mark: #5a2b20;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
main { max-width: 1080px; margin: 0 auto; padding: 48px 24px 80px; }
h1 { font-size: 2rem; line-height: 1.2; margin: 4px 0 6px; letter-spacing: -0.02em; }
h2 { font-size: 1.25rem; margin: 52px 0 14px; letter-spacing: -0.01em; }
h3 { font-size: 1rem; margin: 0; }
p { margin: 0 0 12px; }
.eyebrow {
  color: var(--accent); font-weight: 600; font-size: 0.8rem; letter-spacing: 0.06em;
  text-transform: uppercase;
}
.soft { color: var(--ink-2); }
.small { font-size: 0.85rem; }
.card {
  background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 20px;
}
.stats { display: grid; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); gap: 12px; }
.stats .card {
  padding: 14px 16px; display: flex; flex-direction: column; justify-content: space-between;
}
.stats .value { font-size: 1.4rem; font-weight: 650; font-variant-numeric: tabular-nums; }
.stats { margin-top: 24px; }
.findings { display: grid; gap: 10px; margin: 0; padding: 0; list-style: none; }
.findings .badge { flex: 0 0 9.5em; text-align: center; }
.findings li { display: flex; gap: 12px; align-items: baseline; }
.badge {
  display: inline-block; border-radius: 99px; padding: 1px 10px; font-size: 0.78rem;
  font-weight: 600; white-space: nowrap;
}
.good { color: var(--good); background: var(--good-soft); }
.bad { color: var(--bad); background: var(--bad-soft); }
.chip { color: var(--ink-2); background: var(--paper); border: 1px solid var(--line); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 12px; text-align: right; border-bottom: 1px solid var(--line); }
th { font-weight: 600; font-size: 0.82rem; color: var(--ink-2); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
tbody tr:last-child td { border-bottom: 0; }
tbody tr.main td { font-weight: 650; background: var(--accent-soft); }
td.rule, th.rule { border-left: 1px solid var(--line); }
.tables { display: grid; gap: 16px; }
.tables h3 { margin-bottom: 10px; }
.tables p { margin: 10px 0 0; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit; }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 16px; }
.samples .card { display: flex; flex-direction: column; gap: 12px; min-width: 0; }
.chips { display: flex; flex-wrap: wrap; gap: 6px; }
audio { width: 100%; height: 38px; }
dl { margin: 0; display: grid; gap: 8px; overflow-wrap: anywhere; }
dt { font-size: 0.76rem; font-weight: 600; color: var(--ink-2); }
dd { margin: 0; white-space: pre-wrap; }
mark { background: var(--mark); color: inherit; border-radius: 3px; padding: 0 2px; }
details summary { cursor: pointer; color: var(--ink-2); font-size: 0.85rem; }
details dl { margin-top: 10px; }
.answer { font-size: 1.1rem; font-weight: 600; }
@media (max-width: 560px) {
  main { padding: 28px 16px 48px; }
  h1 { font-size: 1.5rem; }
  .stats { grid-template-columns: repeat(2, 1fr); }
  .stats .value { font-size: 1.15rem; }
  .samples { grid-template-columns: 1fr; }
  .card { padding: 16px; }
  .findings li { flex-direction: column; gap: 2px; }
  .findings .badge { flex: none; }
}
@media print { body { background: #fff; } .card { break-inside: avoid; } }
"""
