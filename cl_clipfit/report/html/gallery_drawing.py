"""The examples of the page as a drawing: test images, and what each method predicted."""

import base64
import io
from collections.abc import Sequence

from PIL import Image

from cl_clipfit.report.html.by_image import Example, Gallery, Prediction
from cl_clipfit.report.html.legend import LIGHT
from cl_clipfit.report.html.svg import TEXT, Drawing, cut, rectangle, text, text_width

_SMALL = 12  # pixels, of predictions
_IMAGE = 48  # pixels, the longer side
_ROW, _LINE = 60, 17  # height of an example, and of a line of text in it
_GAP = 16
_MARK = 15  # room for the mark of right or wrong
_RIGHT, _WRONG = "M0 5.5L3.5 9L10 0.5", "M0.5 0.5L8.5 8.5M8.5 0.5L0.5 8.5"
_MOST_ROWS = 12  # of a column of examples, if two columns are not too wide
_NARROW = 480  # pixels


def gallery_drawing(gallery: Gallery) -> Drawing:
    """Return the examples as a drawing; many stand in two columns, unless these are wide."""
    examples = gallery.examples
    edges = _edges(examples)
    count = 2 if len(examples) > _MOST_ROWS and edges[-1] <= _NARROW else 1
    size = -(-len(examples) // count)
    blocks = [examples[start : start + size] for start in range(0, len(examples), size)]
    body = [
        f'<g transform="translate({at * edges[-1]:g},0)">{_block(block, edges)}</g>'
        for at, block in enumerate(blocks)
    ]
    return Drawing(edges[-1] * len(blocks) - _GAP, _LINE + size * _ROW, "\n".join(body))


def _edges(examples: Sequence[Example]) -> list[float]:
    """Return where columns begin: class, time, one for each method; and where the last one ends."""
    names = [cut(example.name) for example in examples] + [f"task {e.task}" for e in examples]
    whens = [p.when for example in examples for p in _first(example)]
    edges = [_IMAGE + _GAP * 0.75]
    edges.append(edges[-1] + max(map(text_width, names)) + _GAP)
    edges.append(edges[-1] + max(text_width(when, _SMALL) for when in whens) + _GAP)
    for label in examples[0].predictions:
        lines = [_words(p) for example in examples for p in example.predictions[label]]
        widest = max(_MARK + text_width(line, _SMALL) for line in lines)
        edges.append(edges[-1] + max(widest, text_width(cut(label))) + _GAP)
    return edges


def _first(example: Example) -> Sequence[Prediction]:
    return next(iter(example.predictions.values()))


def _words(prediction: Prediction) -> str:
    return f"{cut(prediction.name)} {prediction.percent:.0f} %"


def _block(examples: Sequence[Example], edges: Sequence[float]) -> str:
    """Return some of the examples, below the names of the columns."""
    heads = {"class": edges[0]} | dict(zip(examples[0].predictions, edges[2:], strict=False))
    body = [text(x, TEXT / 2, cut(head), anchor="start") for head, x in heads.items()]
    for at, example in enumerate(examples):
        top = _LINE + at * _ROW
        rule = LIGHT["grid" if at else "rule"]
        style = f'stroke="{rule}" stroke-width="0.8"'
        body.append(f'<path d="M0 {top + 2:g}H{edges[-1] - _GAP:g}" {style}/>')
        body.append(_example(example, edges, top + 8))
    return "".join(body)


def _example(example: Example, edges: Sequence[float], top: float) -> str:
    line = [top + _LINE * (row + 0.5) for row in range(len(_first(example)))]
    body = [
        _image(example.picture, top),
        text(edges[0], line[0], cut(example.name), anchor="start"),
    ]
    body.append(_quiet(edges[0], line[1], f"task {example.task}"))
    for prediction, y in zip(_first(example), line, strict=True):
        body.append(_quiet(edges[1], y, prediction.when))
    for predictions, x in zip(example.predictions.values(), edges[2:], strict=False):
        for prediction, y in zip(predictions, line, strict=True):
            colour = LIGHT["good" if prediction.right else "bad"]
            mark = _RIGHT if prediction.right else _WRONG
            body.append(
                f'<path transform="translate({x:g},{y - 4.5:g})" d="{mark}" fill="none"'
                f' stroke="{colour}" stroke-width="1.6"/>'
            )
            words = _words(prediction)
            body.append(text(x + _MARK, y, words, anchor="start", size=_SMALL, colour=colour))
    return "".join(body)


def _quiet(x: float, y: float, content: str) -> str:
    return text(x, y, content, anchor="start", size=_SMALL, colour=LIGHT["soft"])


def _image(url: str, top: float) -> str:
    """Return the picture of an example, in the middle of its column."""
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as picture:
        scale = _IMAGE / max(picture.size)
        width, height = picture.width * scale, picture.height * scale
    x, y = (_IMAGE - width) / 2, top + (_IMAGE - height) / 2
    where = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
    frame = f'fill="none" stroke="{LIGHT["grid"]}"'
    return f'<image {where} xlink:href="{url}"/>{rectangle(x, y, width, height, frame)}'
