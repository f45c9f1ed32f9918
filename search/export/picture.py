"""A small picture of what is left of each layer, for a card: drawn as SVG, on light and dark pages alike."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from space import Architecture, Layout

PICTURE = "layers.svg"
_WIDTH, _ROW, _GAP, _LEFT, _TOP = 640, 70, 34, 70, 24  # pixels
_KEPT, _GONE, _TEXT = "#0072b2", "#d55e00", "#7a7a7a"  # readable on white and on black


def draw_layers(record: Mapping[str, Any], file: Path) -> None:
    """Draw an export's architecture; nothing where its record does not tell it.

    Args:
        record: what secateur.json says.
        file: to write.
    """
    if not record.get("layout") or not record.get("architecture"):
        return
    layout, architecture = Layout.from_dict(record["layout"]), Architecture.from_dict(record["architecture"])
    file.write_text(_svg(layout, architecture), encoding="utf-8")


def _svg(layout: Layout, architecture: Architecture) -> str:
    layers = architecture.layers
    rows = [
        ("attention", "KV groups", layout.kv_groups, [layer.kv_groups for layer in layers]),
        ("MLP", "channels", layout.mlp_width, [layer.mlp_width for layer in layers]),
    ]
    height = _TOP + len(rows) * (_ROW + _GAP) + 14
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'font-family="sans-serif" font-size="12" fill="{_TEXT}">',
        f"<title>What is kept of each of the {len(layers)} layers' attention and MLP</title>",
    ]
    step = (_WIDTH - _LEFT - 8) / len(layers)
    for number, (name, unit, full, kept) in enumerate(rows):
        top = _TOP + number * (_ROW + _GAP)
        parts.append(f'<text x="{_LEFT}" y="{top - 8}">{name}: share of {full:,} {unit} kept (× none)</text>')
        for mark, share in (("100 %", 0), ("0 %", 1)):
            parts.append(f'<text x="{_LEFT - 6}" y="{top + share * _ROW + 4}" text-anchor="end">{mark}</text>')
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - 8}" y1="{top + _ROW}" y2="{top + _ROW}" stroke="{_TEXT}"/>')
        for index, value in enumerate(kept):
            left, width = _LEFT + index * step + 0.1 * step, 0.8 * step
            tip = f"<title>layer {index}: {value:,} of {full:,} {unit}</title>" if value else ""
            if value:
                tall = _ROW * value / full
                parts.append(
                    f'<rect x="{left:.1f}" y="{top + _ROW - tall:.1f}" width="{width:.1f}" height="{tall:.1f}" '
                    f'fill="{_KEPT}">{tip}</rect>'
                )
            else:
                parts.append(
                    f'<path d="M{left:.1f} {top + _ROW - width:.1f}l{width:.1f} {width:.1f}m0 -{width:.1f}'
                    f'l-{width:.1f} {width:.1f}" stroke="{_GONE}" stroke-width="2" fill="none">'
                    f"<title>layer {index}: {name} removed</title></path>"
                )
    every = 5 if len(layers) > 12 else 1
    for index in range(0, len(layers), every):
        parts.append(
            f'<text x="{_LEFT + (index + 0.5) * step:.1f}" y="{height - 18}" text-anchor="middle">{index}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"
