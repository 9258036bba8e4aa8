"""Draw docs/images/method.svg, the method in one picture: `python docs/method_picture.py`."""

from __future__ import annotations

from pathlib import Path

from drawing import Picture

from icpctl.methods.icp.distillation import task_weight

FILE = Path(__file__).with_name("images") / "method.svg"
WORDS = (
    "An image x passes through the network as the student and gives the task loss. ICP moves x in T steps, so that the task loss falls. The "
    "moved image passes through the same network as the teacher. The feature loss pulls the student's features towards the teacher's. "
    "The weight of the task loss is 1 in the warm-up and falls along a quarter cosine, while the weight of the feature loss rises."
)


def picture() -> Picture:
    """The picture, without what was drawn before."""
    drawn = Picture(760, 284, WORDS)
    drawn.box(20, 36, 92, 56, ["image x", "label y"])
    drawn.box(190, 36, 150, 56, ["network f", "the student"], "blue")
    drawn.box(420, 36, 130, 56, ["features F(x)"], "blue")
    drawn.box(618, 36, 122, 56, ["task loss", "weight a"])
    drawn.box(20, 196, 92, 66, ["ICP", "T steps"], "red")
    drawn.box(190, 201, 150, 56, ["the same network", "the teacher"], "red")
    drawn.box(420, 201, 130, 56, ["features F(x′)", "no gradient"], "red")
    drawn.box(420, 120, 130, 54, ["feature loss", "weight 1 − a"])
    drawn.arrow((112, 64), (190, 64))
    drawn.arrow((340, 64), (420, 64))
    drawn.arrow((550, 64), (618, 64))
    drawn.arrow((66, 92), (66, 196))
    drawn.arrow((112, 229), (190, 229))
    drawn.arrow((340, 229), (420, 229))
    drawn.arrow((485, 92), (485, 120))
    drawn.arrow((485, 201), (485, 174))
    drawn.text(151, 220, "x′", "middle formula")
    drawn.text(76, 132, "x moves so that the", "small")
    drawn.text(76, 148, "task loss falls:", "small")
    drawn.text(76, 166, "x ← x − η · u", "formula")
    _schedule(drawn, 618, 156, 122, 80)
    return drawn


def _schedule(drawn: Picture, x: float, y: float, width: float, height: float) -> None:
    drawn.line(x, y + height, x + width, y + height, "arrow")
    drawn.line(x, y, x, y + height, "arrow")
    task = [(epoch, task_weight(epoch, 25, 100)) for epoch in range(101)]
    drawn.curve([(x + width * e / 100, y + height * (1 - a)) for e, a in task], "blue")
    drawn.curve([(x + width * e / 100, y + height * a) for e, a in task], "red")
    drawn.text(x + 8, y + 18, "a", "formula")
    drawn.text(x + 20, y + height - 12, "1 − a", "formula")
    drawn.text(x + width / 2, y + height + 18, "epochs", "small middle")
    drawn.text(x, y - 10, "weights", "small")


if __name__ == "__main__":
    FILE.write_text(picture().svg(), encoding="utf-8")
