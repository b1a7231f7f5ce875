"""How the Space looks, in the colours of gradio's themes."""

STYLE = """
#picture img { width: 100%; height: auto; aspect-ratio: 1; cursor: crosshair; }
.leaks { font-size: 15px; line-height: 1.5; color: var(--body-text-color); }
.leaks p { margin: 0 0 10px; max-width: 72ch; overflow-wrap: anywhere; }
.leaks h3 { margin: 26px 0 4px; font-size: 17px; line-height: 1.3; }
.leaks .note, .leaks figcaption, .leaks .label { font-size: 13px; line-height: 1.4;
  color: color-mix(in srgb, var(--body-text-color) 72%, transparent); }
.leaks .tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px; }
.leaks .tile { border: 1px solid var(--border-color-primary); border-radius: 10px; padding: 10px 12px; }
.leaks .value { font-size: 24px; font-weight: 650; line-height: 1.3; font-variant-numeric: tabular-nums; }
.leaks .views { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 10px; }
.leaks:has(+ .leaks) { margin-bottom: 14px; }
.leaks:has(+ .leaks) .views { grid-template-columns: repeat(3, 1fr); }
.leaks pre { overflow-x: auto; font-size: 13px; }
.leaks figure { margin: 0; }
.leaks img { width: 100%; aspect-ratio: 1; image-rendering: pixelated; border-radius: 6px; display: block;
  margin: 0 0 4px; }
.leaks .scroll { overflow-x: auto; }
.leaks table, .leaks tr { border: 0 !important; }
.leaks table { border-collapse: collapse; width: 100%; font-size: 14px; }
.leaks th, .leaks td { text-align: left; padding: 5px 14px 5px 0; border: 0;
  border-bottom: 1px solid var(--border-color-primary); font-variant-numeric: tabular-nums; }
.leaks .message { border: 1px solid var(--border-color-primary); border-left: 4px solid #c2410c; border-radius: 10px;
  padding: 10px 14px; }
.leaks .scroll + .note { margin-top: 14px; }
@media (max-width: 560px) { .leaks:not(:has(+ .leaks)) .views { grid-template-columns: 1fr 1fr; } }
"""
