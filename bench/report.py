# SPDX-License-Identifier: MIT
"""Samples into a table."""

from statistics import median


class Row:
    """A line of the table: what it is called, its unit, and which direction is better."""

    def __init__(self, title, unit, higher_is_better):
        self.title = f"{title} ({unit})"
        self.arrow = "↑" if higher_is_better else "↓"


ROWS = {
    "down1": Row("bulk down ×1", "Gbit/s", True),
    "up1": Row("bulk up ×1", "Gbit/s", True),
    "down8": Row("bulk down ×8", "Gbit/s", True),
    "up8": Row("bulk up ×8", "Gbit/s", True),
    "rtt": Row("round trip, 1 byte", "µs", False),
    "connect1": Row("connect + 1 byte, one at a time", "µs", False),
    "paced": Row("connect + 1 byte, one every 2 ms, median", "µs", False),
    "connect16": Row("connect + 1 byte, 16-way", "connects/s", True),
    "far": Row("connect, the proxy 20 ms away, median", "round trips", False),
    "engine_cpu": Row("engine CPU", "s per GB", False),
    "machine_cpu": Row("CPU of the whole machine", "s per GB", False),
    "memory": Row("engine memory per idle flow", "KiB", False),
}


def number(value):
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(samples, contenders, ratios):
    """samples[row][contender] has a value for each round; medians, spread, and a column for each of the ratios.

    A ratio is the median of those of each round: what slows the machine for seconds slows both sides of it.
    """
    header = ["", *contenders, *(ratio.title for ratio in ratios)]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for key, row in ROWS.items():
        values = {name: samples[key][name] for name in contenders if samples[key].get(name)}
        if not values:
            continue
        cells = [f"{row.title} {row.arrow}"]
        for name in contenders:
            if name not in values:
                cells.append("–")
                continue
            found = values[name].values()
            spread = f" ({number(min(found))}–{number(max(found))})" if len(found) > 1 else ""
            cells.append(f"{number(median(found))}{spread}")
        for ratio in ratios:
            ours, theirs = values.get(ratio.name, {}), values.get(ratio.base, {})
            target = f" ({ratio.targets[key]})" if key in ratio.targets else ""
            each = [ours[turn] / theirs[turn] for turn in ours if theirs.get(turn)]
            cells.append(f"**{median(each):.2f}**{target}" if each else "–")
        lines.append(cells)
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |"
                     for line in lines)
