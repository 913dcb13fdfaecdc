"""The chart of bench/coalesce.py: an SVG without scripts, for light and dark pages."""

import math

WIDTH, HEIGHT = 980, 620
LEFT, TOP, GAP_X, GAP_Y = 74, 112, 84, 96
PLOT_WIDTH, PLOT_HEIGHT = 220, 170

# Hues that also differ in lightness, for readers with colour vision deficiency.
LIGHT = ("#0969da", "#bf5700", "#5b21b6", "#0a7d5a")
DARK = ("#58a6ff", "#f0a04b", "#c3a6ff", "#3fd6a0")


def series(colours):
    rules = [f".s{n} path {{ stroke: {c}; }} .s{n} circle {{ fill: {c}; }}"
             for n, c in enumerate(colours)]
    return "\n".join(rules)


# No custom properties: not every SVG viewer supports them.
STYLE = f"""
svg {{ font: 12px system-ui, sans-serif; background: #ffffff; }}
text {{ fill: #1b1f24; }}
.note {{ fill: #57606a; }}
.title {{ font-weight: 600; font-size: 13px; }}
.grid {{ stroke: #d8dee4; }}
.axis {{ stroke: #8c959f; }}
path {{ fill: none; stroke-width: 2; }}
{series(LIGHT)}
@media (prefers-color-scheme: dark) {{
svg {{ background: #0d1117; }}
text {{ fill: #e6edf3; }}
.note {{ fill: #9198a1; }}
.grid {{ stroke: #30363d; }}
.axis {{ stroke: #6e7681; }}
{series(DARK)}
}}
"""


def draw(results, windows, in_flight, connections, rate_title):
    """`results`: by data size, load and window the figures."""
    sizes = sorted({size for size, _, _ in results})
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' width="{WIDTH}" height="{HEIGHT}" aria-label="Effect of --coalesce_us">',
        f"<style>{STYLE}</style>",
        text(LEFT, 24, "Effect of --coalesce_us on deliveries and latency", "title"),
        legend(in_flight, sizes),
    ]

    def lines(size, key):
        return [[value(results, (size, load, window), key) for window in windows]
                for load in in_flight]

    for column, size in enumerate(sizes[:2]):
        title = f"{size} bytes to {connections:,} connections"
        out += plot(column, 0, title, "deliveries/s", lines(size, "deliveries"), windows, range(3))
        out += plot(column, 1, "", "p50 latency", lines(size, "p50"), windows, range(3), True)
    rates = [[value(results, (size, "rate", window), "cpu") for window in windows]
             for size in sizes[:2]]
    out += plot(2, 0, rate_title, "server CPU per delivery", rates, windows, (3, 0), unit=" us")
    rates = [[value(results, (size, "rate", window), "p50") for window in windows]
             for size in sizes[:2]]
    out += plot(2, 1, "", "p50 latency", rates, windows, (3, 0), True)
    return "\n".join([*out, "</svg>", ""])


def value(results, key, figure):
    return results.get(key, {}).get(figure)


def legend(in_flight, sizes):
    out, x = [], LEFT
    names = [f"{count} in flight" for count in in_flight]
    for number, name in enumerate(names):
        out.append(f'<g class="s{number}"><circle cx="{x + 4}" cy="44" r="4"/></g>')
        out.append(text(x + 14, 48, name))
        x += 96
    x = LEFT + 2 * (PLOT_WIDTH + GAP_X)
    for colour, size in zip((3, 0), sizes[:2]):
        out.append(f'<g class="s{colour}"><circle cx="{x + 4}" cy="44" r="4"/></g>')
        out.append(text(x + 14, 48, f"{size} bytes"))
        x += 90
    return "\n".join(out)


def plot(column, row, title, what, lines, windows, colours, is_log=False, unit=""):
    """One panel: a line for each of `lines`, the windows as equal steps of the x axis."""
    x0 = LEFT + column * (PLOT_WIDTH + GAP_X)
    y0 = TOP + row * (PLOT_HEIGHT + GAP_Y)
    values = [one for line in lines for one in line if one is not None]
    if not values:
        return []
    ticks = log_ticks(values) if is_log else linear_ticks(max(values))
    low, high = ticks[0], ticks[-1]

    def y_of(number):
        share = (
            math.log(number / low) / math.log(high / low) if is_log
            else (number - low) / (high - low)
        )
        return y0 + PLOT_HEIGHT * (1 - share)

    def x_of(index):
        return x0 + PLOT_WIDTH * index / max(1, len(windows) - 1)

    out = [text(x0, y0 - 26, title, "title"), text(x0, y0 - 8, what, "note")]
    for tick in ticks:
        y = y_of(tick)
        out.append(rule("grid", x0, y))
        label = duration(tick) if is_log else short(tick) + unit
        out.append(text(x0 - 6, y + 4, label, "note", "end"))
    out.append(rule("axis", x0, y0 + PLOT_HEIGHT))
    for index, window in enumerate(windows):
        out.append(text(x_of(index), y0 + PLOT_HEIGHT + 18, f"{window}", "note", "middle"))
    out.append(text(x0 + PLOT_WIDTH / 2, y0 + PLOT_HEIGHT + 36, "--coalesce_us", "note", "middle"))
    for number, line in zip(colours, lines):
        points = [(x_of(i), y_of(one)) for i, one in enumerate(line) if one is not None]
        path = " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in points)
        out.append(f'<g class="s{number}"><path d="M{path}"/>{dots}</g>')
    return out


def rule(kind, x, y):
    """A horizontal line as wide as a panel."""
    return f'<line class="{kind}" x1="{x}" x2="{x + PLOT_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'


def linear_ticks(highest):
    step = 10 ** math.floor(math.log10(highest / 4))
    step = next(step * factor for factor in (1, 2, 2.5, 5, 10) if step * factor * 4 >= highest)
    return [step * number for number in range(5)]


def log_ticks(values):
    low = 10 ** math.floor(math.log10(min(values)))
    high = 10 ** math.ceil(math.log10(max(values) * 1.01))
    decades = round(math.log10(high / low))
    steps = (1,) if decades > 2 else (1, 2, 5)
    return [low * 10**decade * step for decade in range(decades) for step in steps] + [high]


def short(number):
    if number >= 1_000_000:
        return f"{number / 1e6:g}M"
    return f"{number / 1e3:g}k" if number >= 1_000 else f"{number:g}"


def duration(us):
    return f"{us / 1e6:g} s" if us >= 1e6 else f"{us / 1e3:g} ms" if us >= 1e3 else f"{us:g} us"


def text(x, y, content, kind="", anchor="start"):
    kind = f' class="{kind}"' if kind else ""
    anchor = f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{kind}{anchor}>{content}</text>'
