"""Tables of timings made up, for tests that are not about timing."""

from space import Conditions, LatencyTable, Layout

CONDITIONS = Conditions("prefill", 1, 512, "cpu", "A Processor", 2, "float32", "2.0", "5.0")


def made_up(layout: Layout, fixed: int = 1_000_003, **changes) -> LatencyTable:
    """Return timings that rise with the width, from an offset on, and not along a line."""
    attention = ((0, 0), *((groups, 50_021 + 100_003 * groups) for groups in range(1, layout.kv_groups + 1)))
    widths = [layout.mlp_width * step // 4 for step in range(1, 5)]
    mlp = ((0, 0), *((width, 40_009 + 7 * width**2 // layout.mlp_width * 1_009) for width in widths))
    values = {"conditions": CONDITIONS, "layers": layout.layers, "layer_spread": 0.02, "seconds": 12.5}
    return LatencyTable(**{**values, "fixed": fixed, "attention": attention, "mlp": mlp, **changes})
