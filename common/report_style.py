"""The style sheet of the HTML page: light and dark, phone and desktop, nothing loaded from elsewhere."""

STYLE = """
:root { --ground: #fbfaf7; --card: #ffffff; --ink: #22262b; --soft: #5e6670; --line: #e2e0d9;
  --accent: #0072b2; --good: #00704f; --bad: #a8480a; --code: #f3f1ec; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14171a; --card: #1c2024; --ink: #e6e4df; --soft: #9aa3ad; --line: #32383f;
    --accent: #6db8e8; --good: #4cc9a0; --bad: #f0995c; --code: #121518; }
  img { background: #ffffff; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); line-height: 1.55;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
header, main { max-width: 66rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.5rem; }
h1 { font-size: 2.1rem; line-height: 1.15; margin: 0 0 .75rem; letter-spacing: -.02em; }
h2 { font-size: 1.35rem; margin: 0; letter-spacing: -.01em; }
h3 { font-size: .95rem; margin: 1.5rem 0 .4rem; color: var(--soft); }
p { max-width: 46rem; margin: .6rem 0; overflow-wrap: anywhere; }
a { color: var(--accent); text-underline-offset: .15em; }
nav ul { list-style: none; display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr));
  gap: .75rem; padding: 0; margin: 1.5rem 0 0; }
nav li { border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .9rem; background: var(--card); }
nav a { font-weight: 600; text-decoration: none; display: block; }
nav span { color: var(--soft); font-size: .87rem; display: block; line-height: 1.4; }
section { background: var(--card); border: 1px solid var(--line); border-radius: .75rem;
  padding: 1.5rem; margin: 1.75rem 0; scroll-margin-top: 1rem; }
.question { font-size: 1.05rem; font-style: italic; margin: .25rem 0; }
.facts, .legend, figcaption { color: var(--soft); font-size: .87rem; }
.facts { margin: .1rem 0 .8rem; }
.failure { border-left: 4px solid var(--bad); padding: .5rem .9rem; background: var(--code); }
.failure strong { color: var(--bad); }
figure { margin: 1.2rem 0; }
img { display: block; max-width: 100%; height: auto; border-radius: .35rem; }
figcaption { margin-top: .4rem; max-width: 46rem; }
.table { overflow-x: auto; margin-top: 1.2rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; padding: .5rem .75rem .5rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
thead th { color: var(--soft); font-weight: 500; font-size: .82rem; vertical-align: bottom; }
tbody th { font-weight: 500; min-width: 11rem; }
.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
.baseline { display: block; white-space: nowrap; font-variant-numeric: tabular-nums; }
.name { color: var(--soft); }
.best { font-weight: 700; color: var(--good); }
.best::after { content: " \\2713"; }
.won { color: var(--good); }
.lost { color: var(--bad); }
pre { background: var(--code); border: 1px solid var(--line); border-radius: .5rem; padding: .8rem 1rem;
  margin: 0; overflow-x: auto; }
code { font: .87rem/1.6 ui-monospace, "SF Mono", Consolas, "DejaVu Sans Mono", monospace;
  user-select: all; -webkit-user-select: all; }
@media (max-width: 40rem) { header, main { padding: 0 .8rem; } header { padding-top: 1.5rem; }
  section { padding: 1rem; } h1 { font-size: 1.6rem; } }
@media print { section { break-inside: avoid; } }
"""
