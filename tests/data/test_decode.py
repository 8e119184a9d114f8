"""Every kind of image file that people have, and files that are none."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from cl_clipfit.data.images.decode import check_images, open_image, report_bad
from cl_clipfit.data.images.lazy import ImageFiles, LazyImages
from cl_clipfit.errors import UserError

# pytest undoes the filter that decode.py sets; a subprocess below checks it
pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 4), dtype=np.uint8)
GREY, ALPHA, COLOUR = PIXELS[..., 0], PIXELS[..., 3], PIXELS[..., :3]


def decoded(file: Path) -> np.ndarray:
    image = open_image(file)
    assert image.mode == "RGB"
    return np.asarray(image)


def saved(file: Path, image: Image.Image, **options: object) -> np.ndarray:
    image.save(file, **options)
    return decoded(file)


def triple(grey: np.ndarray) -> np.ndarray:
    return np.stack([grey] * 3, -1)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "gif", "webp"])
def test_colour_and_grey_come_out_as_they_went_in(tmp_path: Path, suffix: str) -> None:
    lossless = {"lossless": True} if suffix == "webp" else {}
    few = COLOUR & 0b11000000  # colours that fit a palette
    for pixels in (few, triple(GREY & 0b11000000)):
        file = tmp_path / f"x.{suffix}"
        assert np.array_equal(saved(file, Image.fromarray(pixels), **lossless), pixels)
    if suffix != "webp":
        assert np.array_equal(saved(file, Image.fromarray(GREY)), triple(GREY))


def test_transparency_is_dropped_without_a_word(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    grey_alpha = Image.fromarray(np.stack([GREY, ALPHA], -1))
    assert grey_alpha.mode == "LA"
    assert np.array_equal(saved(tmp_path / "la.png", grey_alpha), triple(GREY))
    assert np.array_equal(saved(tmp_path / "rgba.png", Image.fromarray(PIXELS)), COLOUR)
    palette = Image.fromarray(GREY % 4)
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    colours = np.arange(10, 130, 10, dtype=np.uint8).reshape(4, 3)[GREY % 4]
    for transparency in ({}, {"transparency": 2}, {"transparency": b"\x00\x80\xff\x10"}):
        assert np.array_equal(saved(tmp_path / "p.png", palette, **transparency), colours)
    assert np.array_equal(saved(tmp_path / "p.gif", palette, transparency=1), colours)
    keyed = Image.fromarray(COLOUR)
    key = tuple(COLOUR[0, 0].tolist())
    assert np.array_equal(saved(tmp_path / "key.png", keyed, transparency=key), COLOUR)
    assert not recwarn.list


def png(bits: int, rows: np.ndarray) -> bytes:
    """Write a grey PNG from its definition, without PIL."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], bits, 0, 0, 0, 0)
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body))
        + chunk(b"IEND", b"")
    )  # fmt: skip


def test_16_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    values = [0, 128, 129, 257, 385, 386, 32768, 65406, 65407, 65535]
    by_hand = [0, 0, 1, 1, 1, 2, 128, 254, 255, 255]  # value x 255 / 65535, to the nearest
    wide = np.array([values], dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(png(16, wide.astype(">u2")))
    assert decoded(tmp_path / "a.png")[0, :, 0].tolist() == by_hand
    for name in ("a.tif", "b.png"):  # I;16
        assert saved(tmp_path / name, Image.fromarray(wide))[0, :, 1].tolist() == by_hand
    wider = Image.fromarray(wide.astype(np.int32))
    assert wider.mode == "I"
    assert saved(tmp_path / "i.tif", wider)[0, :, 2].tolist() == by_hand
    with pytest.raises(UserError, match=r"i\.tif cannot be read as an image: .*beyond 16 bits"):
        saved(tmp_path / "i.tif", Image.fromarray(np.array([[0, 65536]], dtype=np.int32)))
    big = wide.astype(">u2").tobytes()
    header = b"P5 10 1 65535\n"
    (tmp_path / "a.pgm").write_bytes(header + big)
    assert decoded(tmp_path / "a.pgm")[0, :, 0].tolist() == by_hand


def test_one_bit(tmp_path: Path) -> None:
    bits = Image.fromarray((GREY > 100).astype(np.uint8) * 255).convert("1", dither=0)
    for suffix in ("png", "tif", "bmp"):
        found = saved(tmp_path / f"1.{suffix}", bits)
        assert np.array_equal(found, triple((GREY > 100).astype(np.uint8) * 255))


def test_floating_point_is_refused(tmp_path: Path) -> None:
    Image.fromarray(GREY.astype(np.float32) / 255).save(tmp_path / "f.tif")
    with pytest.raises(UserError, match=r"f\.tif cannot .*floating-point pixels have no fixed"):
        open_image(tmp_path / "f.tif")


def test_cmyk_with_adobes_inversion(tmp_path: Path) -> None:
    inks = np.array([255, 64, 0, 32])
    by_hand = (255 - inks[:3]) * (255 - inks[3]) / 255
    flat = Image.new("CMYK", (16, 16), tuple(inks.tolist()))
    assert np.abs(saved(tmp_path / "c.tif", flat)[8, 8] - by_hand).max() < 2
    file = tmp_path / "c.jpg"
    assert np.abs(saved(file, flat, quality=100)[8, 8] - by_hand).max() < 3
    assert b"Adobe" in file.read_bytes()
    with Image.open(file) as raw:
        raw_inks = 255 - np.asarray(raw)[8, 8].astype(int)
    assert np.abs(raw_inks - (255 - inks)).max() < 3  # PIL has undone the inversion


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth = Image.fromarray(COLOUR).resize((40, 24))
    for suffix in ("jpg", "png", "webp"):
        found = saved(tmp_path / f"o.{suffix}", smooth, exif=exif)
        with Image.open(tmp_path / f"o.{suffix}") as raw:
            expected = np.asarray(ImageOps.exif_transpose(raw).convert("RGB"))
        assert np.array_equal(found, expected)
        assert found.shape == ((24, 40, 3) if orientation < 5 else (40, 24, 3))
    if orientation == 6:  # the top row of the file is the right column of the photo
        plain = saved(tmp_path / "plain.png", smooth)
        assert np.array_equal(decoded(tmp_path / "o.png")[:, -1], plain[0])


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_the_first_frame_of_several(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (9, 5), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if suffix == "webp" else {}
    found = saved(
        tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:], **options
    )
    assert (found == (255, 0, 0)).all()


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)).save(
        buffer, "JPEG"
    )
    return buffer.getvalue()


def bad_files(folder: Path) -> dict[Path, str]:
    """Write files that cannot be read, and say why."""
    whole = png(8, np.random.default_rng(2).integers(0, 256, (20, 20), dtype=np.uint8))
    contents = {
        "empty.jpg": (b"", "the file is empty"),
        "text.png": (b"not an image", "not an image of a supported format"),
        "page.jpg": (b"<html></html>", "not an image of a supported format"),
        "cut.jpg": (jpeg()[: len(jpeg()) // 2], "truncated"),
        "head.jpg": (jpeg()[:3], "not an image of a supported format"),
        "cut.png": (whole[:200], "truncated|broken PNG"),
        "huge.png": (png(8, np.zeros((1, 1), np.uint8)).replace(
            struct.pack(">II", 1, 1), struct.pack(">II", 10_000, 10_000)), "10000x10000 pixels"),
        "huger.png": (png(8, np.zeros((1, 1), np.uint8)).replace(
            struct.pack(">II", 1, 1), struct.pack(">II", 50_000, 50_000)), "more than .* pixels"),
    }  # fmt: skip
    for name, (content, _) in contents.items():
        if name.startswith("huge"):  # the header's own checksum
            at = content.index(b"IHDR")
            crc = struct.pack(">I", zlib.crc32(content[at : at + 17]))
            content = content[: at + 17] + crc + content[at + 21 :]
        (folder / name).write_bytes(content)
    (folder / "folder.png").mkdir()
    reasons = {folder / name: reason for name, (_, reason) in contents.items()}
    reasons |= {folder / "gone.png": "no such file", folder / "folder.png": "a folder"}
    return reasons


def test_each_bad_file_is_named_with_its_reason(tmp_path: Path) -> None:
    for file, reason in bad_files(tmp_path).items():
        with pytest.raises(UserError, match=rf"{file.name} cannot be read as an image.*({reason})"):
            open_image(file)
        with pytest.raises(UserError) as caught:
            open_image(file)
        assert "\n" not in str(caught.value)
        assert str(caught.value).count(str(file)) == 1


def test_nothing_is_written_beside_the_error(tmp_path: Path) -> None:
    """PIL warns of large images, odd EXIF and palettes: not one line of it."""
    bad_files(tmp_path)
    (tmp_path / "odd.jpg").write_bytes(
        jpeg()[:2] + b"\xff\xe1\x00\x10Exif\0\0II*\0\xff\0\0\0" + jpeg()[2:]
    )
    code = (
        "import sys, warnings; from pathlib import Path\n"
        "from cl_clipfit.data.images.decode import check_images, open_image\n"
        "files = sorted(Path(sys.argv[1]).iterdir())\n"
        "print([files[i].name for i, _ in check_images(files, lambda *_: None)])\n"
        "before = list(warnings.filters)\n"
        "print(open_image(Path(sys.argv[1], 'odd.jpg')).size)\n"
        "assert warnings.filters == before"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    bad = ["empty.jpg", "folder.png", "head.jpg", "huge.png", "huger.png", "page.jpg", "text.png"]
    assert done.stdout.splitlines() == [str(bad), "(64, 64)"]


class Corner:
    """Cuts the upper left 4x5 pixels."""

    size = (4, 5)

    def fit_image(self, image: Image.Image) -> Tensor:
        return torch.from_numpy(np.asarray(image)[:4, :5].copy()).permute(2, 0, 1)

    def fit(self, images: Tensor) -> Tensor:
        return images[..., :4, :5]


def test_many_files_are_decoded_in_order_and_bad_ones_listed(tmp_path: Path) -> None:
    good = []
    for number in range(150):
        good.append(tmp_path / f"{number}.png")
        Image.new("RGB", (6, 6), (number, 255 - number, 7)).save(good[-1])
    paths = list(good)
    reasons = bad_files(tmp_path)
    for number, file in enumerate(reasons):
        paths.insert(13 * number, file)
    steps: list[tuple[str, int, int | None]] = []
    images, bad = LazyImages([ImageFiles(tuple(paths))], Corner()).decode(
        lambda *step: steps.append(step)
    )
    assert images.shape == (len(paths), 3, 4, 5)
    assert images.dtype == torch.uint8
    assert [paths[index] for index, _ in bad] == list(reasons)
    rows = iter(range(150))
    for index, path in enumerate(paths):
        number = next(rows) if path in good else None
        colour = (0, 0, 0) if number is None else (number, 255 - number, 7)
        assert (images[index] == torch.tensor(colour, dtype=torch.uint8)[:, None, None]).all()
    assert steps[-1] == ("reading images", len(paths), len(paths))
    assert [done for _, done, _ in steps] == sorted(done for _, done, _ in steps)
    found = check_images(paths, lambda *step: None)
    headers = [path for path in reasons if path.name not in ("cut.jpg", "cut.png")]
    assert [paths[index] for index, _ in found] == headers
    assert check_images([], lambda *step: None) == []


def test_an_error_of_the_program_is_no_bad_file(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "small.png")
    with pytest.raises(RuntimeError, match=r"size|expand"):
        LazyImages([ImageFiles((tmp_path / "small.png",))], Corner()).decode()


def test_the_report_is_one_line_with_the_way_out(tmp_path: Path) -> None:
    paths = [Path(f"{number}.jpg") for number in range(1000)]
    line = report_bad([(3, "empty"), (500, "truncated")], paths)
    assert line == (
        "2 of 1,000 images cannot be read (3.jpg: empty; 500.jpg: truncated): repair or remove"
        " them, or leave them out with --skip-bad-images"
    )
    many = report_bad([(index, "empty") for index in range(7)], paths)
    assert "4.jpg: empty; ...)" in many
    assert "5.jpg" not in many
