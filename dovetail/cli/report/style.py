# SPDX-License-Identifier: Apache-2.0
"""The style sheet of the HTML report: one page, no outside resources, light and dark by the reader's setting."""

STYLE = """
:root { color-scheme: light dark;
  --bg:#fcfcfb; --panel:#ffffff; --ink:#1d2327; --soft:#5b6670; --line:#e3e6e8; --good:#1a7f4b; --warn:#9a6700;
  --bad:#b3261e; --accent:#0b5cad;
  --c0:#0b5cad; --c1:#c2540a; --c2:#1a7f4b; --c3:#8e44ad; --c4:#b01e68; --c5:#0f7f8c; --c6:#7a6a00; --c7:#5b6670; }
@media (prefers-color-scheme: dark) { :root {
  --bg:#14181b; --panel:#1b2024; --ink:#e7eaec; --soft:#9aa5ae; --line:#2e363c; --good:#5cc98d; --warn:#e0b34c;
  --bad:#f2857d; --accent:#6db3f8;
  --c0:#6db3f8; --c1:#f5a35c; --c2:#5cc98d; --c3:#c79be6; --c4:#f07fb4; --c5:#5ccbd6; --c6:#d9c75a; --c7:#9aa5ae; } }
* { box-sizing: border-box; }
body { margin:0; background:var(--bg); color:var(--ink);
  font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif; }
main { max-width:1240px; margin:0 auto; padding:48px 24px 80px; }
h1 { font-size:2.1rem; line-height:1.15; margin:0 0 6px; letter-spacing:-.02em; overflow-wrap:anywhere; }
h2 { font-size:1.3rem; margin:56px 0 14px; letter-spacing:-.01em; overflow-wrap:anywhere; }
h3 { font-size:1rem; margin:32px 0 8px; }
p, li { max-width:75ch; } .soft { color:var(--soft); } small, .small { font-size:.83rem; }
code { font:.86em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace; overflow-wrap:anywhere; }
code.whole { white-space:nowrap; }
.cards { display:grid; grid-template-columns:repeat(auto-fit,minmax(235px,1fr)); gap:14px; }
.card, figure { background:var(--panel); border:1px solid var(--line); border-radius:10px; }
.card { padding:16px 18px; } .card h3 { margin:0; font-weight:600; color:var(--soft); font-size:.83rem; }
.card .value { font-size:1.75rem; font-weight:650; letter-spacing:-.02em; margin:2px 0; }
.card .ratio { color:var(--good); font-weight:600; } .card .ratio.less { color:var(--soft); }
.card .recipe { font-weight:600; overflow-wrap:anywhere; }
.figures { display:grid; grid-template-columns:repeat(auto-fit,minmax(420px,1fr)); gap:14px; margin:14px 0; }
figure { margin:0; padding:14px 16px 10px; } figcaption { font-size:.83rem; color:var(--soft); margin-top:4px; }
svg { display:block; width:100%; height:auto; }
svg.swatch { display:inline-block; width:14px; height:14px; vertical-align:-2px;
  margin-right:6px; }
svg text { fill:var(--ink); font:12px system-ui,-apple-system,"Segoe UI",Roboto,Arial,sans-serif; }
svg text.tick { fill:var(--soft); font-size:11.5px; } svg text.axis { fill:var(--soft); font-size:12px; }
.grid { stroke:var(--line); stroke-width:1; } .mark { fill:var(--c); stroke:var(--panel); stroke-width:1.2; }
.mark.weak { opacity:.38; } .whisker { stroke:var(--c); stroke-width:1.6; opacity:.75; }
.bar { fill:var(--c); opacity:.6; } .bar.pale { opacity:.3; } .bar.interval { opacity:.22; }
.front { fill:none; stroke:var(--soft); stroke-width:1.4; stroke-dasharray:5 4; opacity:.8; }
.scroll { overflow-x:auto; margin:10px 0; } table { border-collapse:collapse; width:100%; font-size:.88rem; }
th { text-align:left; color:var(--soft); font-weight:600; font-size:.8rem;
  border-bottom:1px solid var(--line); white-space:nowrap;
  vertical-align:bottom; }
th, td { padding:7px 10px 7px 0; } td { border-bottom:1px solid var(--line); vertical-align:top; }
th.n, td.n { text-align:right; font-variant-numeric:tabular-nums; white-space:nowrap; }
td .soft { display:block; font-size:.8rem; font-weight:400; }
td.wide { min-width:13rem; }
.legend { display:flex; flex-wrap:wrap; gap:4px 18px; font-size:.85rem;
  margin:18px 0 0; padding:0;
  list-style:none; }
td.name { font-weight:600; white-space:nowrap; }
td.why { min-width:22rem; overflow-wrap:anywhere; }
.badge { display:inline-block; padding:0 8px; border-radius:99px; font-size:.78rem; border:1px solid currentColor;
  white-space:nowrap; }
.native { color:var(--good); } .emulated { color:var(--warn); } .no, .bad { color:var(--bad); }
details { margin:14px 0; } summary { cursor:pointer; color:var(--accent); font-weight:600; font-size:.92rem; }
footer { margin-top:64px; border-top:1px solid var(--line); padding-top:16px; }
@media print { main { max-width:none; padding:0; } details > * { display:block; } }
"""
