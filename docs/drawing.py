"""SVG pictures that can be read on a light and on a dark page: they bring a background, and follow the colours of the system."""

from __future__ import annotations

from html import escape

_STYLE = """\
.card { fill: #ffffff; stroke: #d0d7de } text { fill: #1f2328; font: 14px system-ui, "Segoe UI", Helvetica, Arial, sans-serif }
.small { font-size: 12px; fill: #57606a } .bold { font-weight: 600 } .middle { text-anchor: middle } .formula { font-style: italic }
.axis { stroke: #8c959f; stroke-dasharray: 4 3 } .bar { stroke-width: 3 } .arrow { stroke: #57606a; stroke-width: 1.6 }
.head { fill: #57606a } .box { fill: #f6f8fa; stroke: #8c959f } .curve { fill: none; stroke-width: 2 }
.blue { stroke: #0072b2; fill: #0072b2 } .red { stroke: #d55e00; fill: #d55e00 } .grey { stroke: #6e7781; fill: #6e7781 }
.hollow { stroke: #6e7781; fill: #ffffff; stroke-width: 2 } .box.blue { fill: #e7f3fb } .box.red { fill: #fdeee3 } .curve.blue, .curve.red { fill: none }
@media (prefers-color-scheme: dark) {
.card { fill: #161b22; stroke: #30363d } text { fill: #e6edf3 } .small { fill: #9da7b3 } .arrow { stroke: #9da7b3 } .head { fill: #9da7b3 }
.box { fill: #21262d; stroke: #6e7681 } .blue { stroke: #56b4e9; fill: #56b4e9 } .red { stroke: #f0883e; fill: #f0883e }
.grey { stroke: #9da7b3; fill: #9da7b3 } .hollow { stroke: #9da7b3; fill: #161b22 } .box.blue { fill: #12283a } .box.red { fill: #3a2415 }
.curve.blue, .curve.red { fill: none }
}"""


class Picture:
    """Shapes at places in pixels, from the upper left.

    Args:
        width, height: pixels.
        words: what is drawn, for those who cannot see it.
    """

    def __init__(self, width: int, height: int, words: str) -> None:
        self.words = escape(words)
        self.parts = [f'<rect class="card" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"/>']
        self.size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'

    def text(self, x: float, y: float, words: str, kind: str = "") -> None:
        """Words whose line stands at y."""
        self.parts.append(f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>')

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """A straight line."""
        self.parts.append(f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')

    def dot(self, x: float, y: float, kind: str) -> None:
        """A point of a plot."""
        self.parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')

    def box(self, x: float, y: float, width: float, height: float, lines: list[str], kind: str = "") -> None:
        """A box with lines of text in its middle; the first is its heading."""
        self.parts.append(f'<rect class="box {kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>')
        first = y + height / 2 + 5 - 9 * (len(lines) - 1)
        for number, words in enumerate(lines):
            self.text(x + width / 2, first + 18 * number, words, "middle" if not number else "middle small")

    def arrow(self, *points: tuple[float, float]) -> None:
        """An arrow along straight lines that are level or upright."""
        way = " L ".join(f"{x} {y}" for x, y in points)
        self.parts.append(f'<path class="arrow" fill="none" d="M {way}"/>')
        (x0, y0), (x, y) = points[-2:]
        if x0 == x:
            back = 7 if y0 > y else -7
            corners = f"{x},{y} {x - 4},{y + back} {x + 4},{y + back}"
        else:
            back = 7 if x0 > x else -7
            corners = f"{x},{y} {x + back},{y - 4} {x + back},{y + 4}"
        self.parts.append(f'<polygon class="head" points="{corners}"/>')

    def curve(self, points: list[tuple[float, float]], kind: str) -> None:
        """A line through points."""
        way = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline class="curve {kind}" points="{way}"/>')

    def svg(self) -> str:
        """The file."""
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {self.size} role="img"><title>{self.words}</title>'
        return "\n".join([head, f"<style>{_STYLE}</style>", *self.parts, "</svg>\n"])
