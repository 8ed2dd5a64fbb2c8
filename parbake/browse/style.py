"""How stores look in a page: one sheet for notebooks, reports and plain browsers, light and dark."""

from __future__ import annotations

# Each colour is that of the page's own theme where it has one - JupyterLab and nbconvert (--jp-*), VS Code
# (--vscode-*), mkdocs-material (--md-*) - else the reader's preference. Ink and paper are always set
# together, so that neither meets the other of a page that knows no themes.
STYLE = """
.parbake {
  --parbake-own-ink: #1f2428; --parbake-own-paper: #ffffff; --parbake-own-line: #d8dee4;
  --parbake-own-good: #1a7f37; --parbake-own-bad: #cf222e; --parbake-own-warn: #9a6700;
}
@media (prefers-color-scheme: dark) { .parbake {
  --parbake-own-ink: #d7dde3; --parbake-own-paper: #16191d; --parbake-own-line: #363c44;
  --parbake-own-good: #4cbf68; --parbake-own-bad: #ff7b72; --parbake-own-warn: #d9a83a;
} }
[data-theme=light] .parbake, [data-jp-theme-light=true] .parbake, .vscode-light .parbake,
[data-md-color-scheme=default] .parbake {
  --parbake-own-ink: #1f2428; --parbake-own-paper: #ffffff; --parbake-own-line: #d8dee4;
  --parbake-own-good: #1a7f37; --parbake-own-bad: #cf222e; --parbake-own-warn: #9a6700;
}
[data-theme=dark] .parbake, [theme=dark] .parbake, [data-jp-theme-light=false] .parbake,
.vscode-dark .parbake, [data-md-color-scheme=slate] .parbake {
  --parbake-own-ink: #d7dde3; --parbake-own-paper: #16191d; --parbake-own-line: #363c44;
  --parbake-own-good: #4cbf68; --parbake-own-bad: #ff7b72; --parbake-own-warn: #d9a83a;
}
.parbake {
  --parbake-ink: var(--jp-content-font-color1, var(--vscode-editor-foreground,
    var(--md-default-fg-color, var(--parbake-own-ink))));
  --parbake-paper: var(--jp-layout-color0, var(--vscode-editor-background,
    var(--md-default-bg-color, var(--parbake-own-paper))));
  --parbake-line: var(--jp-border-color2, var(--vscode-editorWidget-border,
    var(--md-default-fg-color--lightest, var(--parbake-own-line))));
  --parbake-good: var(--parbake-own-good); --parbake-bad: var(--parbake-own-bad);
  --parbake-warn: var(--parbake-own-warn);
  box-sizing: border-box; max-width: 100%; padding: 6px 2px; font-size: 13px; line-height: 1.45;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  color: var(--parbake-ink); background: var(--parbake-paper); font-variant-numeric: tabular-nums;
}
.parbake .parbake-quiet, .parbake .parbake-table thead th { opacity: .7; font-weight: normal; }
.parbake .parbake-small { font-size: 11px; }
.parbake .parbake-head { display: flex; flex-wrap: wrap; align-items: center; gap: 2px 10px; }
.parbake .parbake-name { font-size: 15px; font-weight: 600; overflow-wrap: anywhere; }
.parbake .parbake-badge {
  font-size: 11px; line-height: 1.6; padding: 0 8px; border: 1px solid currentColor; border-radius: 9px;
  white-space: nowrap; cursor: help;
}
.parbake .parbake-good { color: var(--parbake-good); }
.parbake .parbake-bad { color: var(--parbake-bad); }
.parbake .parbake-warn { color: var(--parbake-warn); }
.parbake .parbake-note { margin: 3px 0; overflow-wrap: anywhere; }
.parbake .parbake-wide { overflow-x: auto; }
.parbake table.parbake-table {
  border-collapse: collapse; border: 0; margin: 4px 0 8px; width: auto; font-size: 12px; color: inherit;
  table-layout: auto;
}
.parbake .parbake-table tbody tr:nth-child(n) { background: none; }
.parbake .parbake-table th, .parbake .parbake-table td {
  padding: 3px 10px 3px 0; border: 0; border-bottom: 1px solid var(--parbake-line); text-align: left;
  vertical-align: top; font-weight: normal; white-space: nowrap; max-width: none; background: none;
}
.parbake .parbake-table tbody tr:last-child > * { border-bottom: 0; }
.parbake .parbake-table .parbake-number { text-align: right; }
.parbake .parbake-table tbody th { font-weight: 600; }
.parbake .parbake-table th .parbake-quiet {
  display: block; white-space: normal; overflow-wrap: anywhere; font-weight: normal;
}
.parbake .parbake-table th .parbake-quiet { min-width: 9em; max-width: 19em; }
.parbake .parbake-table .parbake-sub { font-weight: normal; opacity: .7; padding-left: 10px; }
.parbake .parbake-table tr:has(+ tr .parbake-sub) > * { border-bottom: 0; padding-bottom: 1px; }
.parbake .parbake-table tr:has(.parbake-sub) > * { padding-top: 0; }
.parbake svg.parbake-picture, .parbake img.parbake-picture {
  display: block; width: 140px; height: auto; max-height: 100px; max-width: none; margin: 1px 0 0;
  object-fit: contain; object-position: left; background: none; image-rendering: auto;
}
.parbake details .parbake-table tbody th { font-weight: normal; opacity: .7; }
.parbake .parbake-table td code { display: inline-block; max-width: 60em; }
.parbake details { margin: 2px 0; }
.parbake summary { cursor: pointer; padding: 1px 0; }
.parbake details > :not(summary) { margin-left: 16px; }
.parbake ul.parbake-tree { list-style: none; margin: 0 0 4px 16px; padding: 0; font-size: 12px; }
.parbake ul.parbake-tree li { margin: 1px 0; overflow-wrap: anywhere; }
.parbake code {
  font-family: var(--jp-code-font-family, ui-monospace, SFMono-Regular, Menlo, Consolas, monospace);
  font-size: 12px; color: inherit; background: none; padding: 0;
  white-space: pre-wrap; overflow-wrap: anywhere;
}
""".strip()
