import io
from pathlib import Path

import numpy as np
import pytest

from ovr.errors import ArtifactError, ConfigError, InputError
from ovr.input.encoder import encoder_from_json
from ovr.input.image import ImageEncoder, file_contents, header_problem
from ovr.input.records import from_bytes, records_of, to_bytes, wire_name

Image = pytest.importorskip("PIL.Image", reason="pip install 'ovr[images]'")

GREY = ImageEncoder(4, 6, mode="grey")
RGB = ImageEncoder(4, 6)


@pytest.fixture
def pixels(rng):
    """A colour image of the encoders' size."""
    return rng.integers(256, size=(4, 6, 3), dtype=np.uint8)


def file_bytes(image, kind="PNG", **options):
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, kind, **options)
    return buffer.getvalue()


def test_an_image_of_the_right_size_keeps_every_value_in_every_form(pixels, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(file_bytes(pixels))
    forms = [path, path.read_bytes(), pixels, pixels.transpose(2, 0, 1).astype(float)]
    x = RGB.encode(forms)
    assert x.dtype == np.float32
    assert x.shape == (4, *RGB.tensor.shape) == (4, 3, 4, 6)
    for row in x:
        np.testing.assert_array_equal(row, pixels.transpose(2, 0, 1))
    np.testing.assert_array_equal(RGB.encode(pixels[None]), x[:1])
    np.testing.assert_array_equal(RGB.encode(x), x)


def test_a_server_is_sent_files_that_encode_alike(pixels, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(file_bytes(pixels, "JPEG"))
    rows = [path, path.read_bytes(), pixels, np.zeros((2, 2, 4), np.uint8), np.zeros((3, 3), np.uint8)]
    sent = to_bytes(records_of(rows, "image"))
    assert sent.shape == (5, 1)
    assert sent[0, 0] == path.read_bytes()
    np.testing.assert_array_equal(RGB.encode(from_bytes(sent, "image")), RGB.encode(rows))
    assert wire_name("image") == "image"
    with pytest.raises(InputError, match=r"row 0 is a float32 array of shape \(3, 4, 6\); an image is a uint8 array"):
        records_of(RGB.encode([pixels]), "image")
    with pytest.raises(InputError, match=r"row 1 \(no\.png\) cannot be read"):
        records_of([path, Path("no.png")], "image")


@pytest.mark.parametrize("encoder", [GREY, ImageEncoder(2, 3, mode="rgb", fit="pad", resample="nearest", background=0)])
def test_settings_survive_json(encoder):
    assert encoder_from_json(encoder.to_json()) == encoder
    assert encoder.to_json()["kind"] == "image"
    with pytest.raises(ArtifactError, match="the image encoder cannot be read"):
        ImageEncoder.from_json({**encoder.to_json(), "colour": 1})


def test_exif_orientation_is_applied(rng):
    upright = rng.integers(256, size=(4, 6), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    stored = np.rot90(upright)
    assert Image.open(io.BytesIO(file_bytes(stored, exif=exif))).size == (4, 6)
    np.testing.assert_array_equal(GREY.encode([file_bytes(stored, exif=exif)])[0, 0], upright)


@pytest.mark.parametrize("background", [0, 128, 255])
def test_transparent_pixels_show_the_background(background):
    encoder = ImageEncoder(1, 2, background=background)
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0]]], np.uint8)
    expected = [[[10, background]], [[20, background]], [[30, background]]]
    np.testing.assert_array_equal(encoder.encode([rgba, file_bytes(rgba)]), [expected, expected])
    half = encoder.encode([np.array([[[200, 200, 200, 128]] * 2], np.uint8)])
    np.testing.assert_allclose(half, 200 * 128 / 255 + background * 127 / 255, atol=1)


def test_a_transparent_palette_shows_the_background_too():
    image = Image.new("P", (2, 1))
    image.putpalette([9, 9, 9, 50, 60, 70])
    image.putdata([0, 1])
    x = ImageEncoder(1, 2, background=200).encode([file_bytes(image, transparency=0)])
    np.testing.assert_array_equal(x[0, :, 0], [[200, 50], [200, 60], [200, 70]])


def test_16_bit_grey_is_scaled_not_cut_off():
    image = Image.fromarray(np.array([[0, 256, 32768, 65535]], np.uint16))
    np.testing.assert_array_equal(ImageEncoder(1, 4, mode="grey").encode([file_bytes(image)])[0, 0, 0], [0, 1, 128, 255])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("encoder", [GREY, RGB], ids=["grey", "rgb"])
def test_every_usual_mode_is_taken(mode, encoder):
    image = Image.new("RGB", (9, 7), (255, 255, 255)).convert(mode)
    x = encoder.encode([file_bytes(image, "JPEG" if mode in ("CMYK", "YCbCr") else "PNG")])
    np.testing.assert_allclose(x, 255, atol=2)


def test_each_fit_meets_another_aspect_ratio_in_its_own_way():
    wide = np.zeros((2, 6), np.uint8)
    wide[:, 2:4] = 200
    made = {fit: ImageEncoder(2, 2, mode="grey", fit=fit, resample="nearest") for fit in ("stretch", "crop", "pad")}
    np.testing.assert_array_equal(made["crop"].encode([wide])[0, 0], [[200, 200], [200, 200]])
    np.testing.assert_array_equal(made["stretch"].encode([wide])[0, 0], [[0, 0], [0, 0]])
    np.testing.assert_array_equal(ImageEncoder(6, 6, mode="grey", fit="pad", background=7).encode([wide])[0, 0, 0], [7] * 6)


def test_resizing_is_pillows(rng):
    image = rng.integers(256, size=(40, 30, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((6, 4), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    np.testing.assert_array_equal(RGB.encode([image])[0], expected)


def test_a_row_does_not_see_the_others(rng):
    images = list(rng.integers(256, size=(5, 9, 8, 3), dtype=np.uint8))
    np.testing.assert_array_equal(RGB.encode(images)[3:4], RGB.encode(images[3:4]))


def test_an_animation_is_its_first_picture():
    first, second = Image.new("RGB", (6, 4), (0, 0, 0)), Image.new("RGB", (6, 4), (255, 255, 255))
    assert RGB.encode([file_bytes(first, "GIF", save_all=True, append_images=[second])]).max() == 0


def damaged(kind):
    whole = file_bytes(np.arange(64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8), "PNG")
    return {
        "empty": b"",
        "text": b"<html>not found</html>",
        "cut off": whole[: len(whole) // 2],
        "flipped bits": whole[:60] + bytes(byte ^ 255 for byte in whole[60:80]) + whole[80:],
    }[kind]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (damaged("empty"), r"row 1 is no image of BMP, .*, or its header is damaged .it begins with nothing: it is empty"),
        (damaged("text"), r"row 1 is no image of .*begins with 3c 68 74 6d"),
        (damaged("cut off"), r"row 1 is damaged: "),
        (damaged("flipped bits"), r"row 1 is damaged: "),
        (Path("missing.png"), r"row 1 \(missing\.png\) cannot be read: No such file"),
        ("cat.png", r"row 1 is str 'cat\.png'; expected .*; a file is given as pathlib\.Path"),
        (7, r"row 1 is int '7'; expected a pathlib\.Path, the bytes of a file or an array"),
        (np.zeros((3, 4, 6), np.uint8), r"row 1 is a uint8 array of shape \(3, 4, 6\); .* channels last"),
        (np.zeros((4, 6, 3), np.float32), r"row 1 rows have shape \(1, 4, 6, 3\); expected \(rows, 3, 4, 6\)"),
        (np.full((3, 4, 6), np.nan), r"every value must be finite"),
    ],
)
def test_what_is_no_image_is_named(row, message, pixels):
    with pytest.raises(InputError, match=message):
        RGB.encode([pixels, row])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("cat.png", "rows are str; expected a list of images"),
        ([], "got no rows"),
        (np.zeros((0, 4, 6), np.uint8), "got no rows"),
        (None, "rows are NoneType"),
    ],
)
def test_rows_that_are_no_list_are_refused(rows, message):
    for function in (RGB.encode, file_contents):
        with pytest.raises(InputError, match=message):
            function(rows)


def test_32_bit_pixels_are_refused():
    image = Image.fromarray(np.ones((4, 6), np.float32))
    with pytest.raises(InputError, match="has pixels of 32 bits"):
        GREY.encode([file_bytes(image, "TIFF")])


def test_a_file_that_declares_too_many_pixels_is_not_decoded(monkeypatch, tmp_path):
    monkeypatch.setattr("ovr.input.image.MAX_PIXELS", 100)
    path = tmp_path / "bomb.png"
    path.write_bytes(file_bytes(np.zeros((10, 11), np.uint8)))
    assert header_problem(path) == "declares 11x10 pixels; expected at most 100"
    with pytest.raises(InputError, match=r"declares 11x10 pixels; expected at most 100"):
        GREY.encode([path])


def test_a_program_is_no_image():
    with pytest.raises(InputError, match="is no image of"):
        RGB.encode([b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"])


def test_a_header_tells_of_damage_before_decoding(tmp_path, pixels):
    path = tmp_path / "a.png"
    for content, problem in ((file_bytes(pixels), None), (b"no", "is no image of"), (damaged("flipped bits"), "is damaged")):
        path.write_bytes(content)
        found = header_problem(path)
        assert found is None if problem is None else found.startswith(problem)
    assert header_problem(tmp_path / "b.png") == "cannot be read: No such file or directory"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"height": 0}, "the height of images is 0; expected a whole number of pixels"),
        ({"width": 2.5}, r"the width of images is 2\.5"),
        ({"mode": "gray"}, "the mode of images is 'gray'; expected one of grey, rgb"),
        ({"fit": "cover"}, "the fit of images is 'cover'; expected one of stretch, crop, pad"),
        ({"resample": "cubic"}, "the resample of images is 'cubic'"),
        ({"background": 256}, "the background of images is 256; expected a grey level from 0 to 255"),
    ],
)
def test_settings_that_are_none_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        ImageEncoder(**{"height": 4, "width": 6, **settings})
    with pytest.raises(ArtifactError, match="the image encoder cannot be read"):
        ImageEncoder.from_json({"height": 4, "width": 6, **settings})


def test_without_pillow_the_way_out_is_named(monkeypatch, pixels):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    np.testing.assert_array_equal(RGB.encode([pixels])[0], pixels.transpose(2, 0, 1))  # nothing to decode or resize
    with pytest.raises(ConfigError, match=r"pip install 'ovr\[images\]'"):
        RGB.encode([pixels[:2]])


def test_one_array_that_may_be_one_image_is_refused():
    encoder = ImageEncoder(12, 12)
    for channels in (3, 4):
        with pytest.raises(InputError, match=r"one colour image or 12 grey ones of width .: give img\[None\] for one image"):
            encoder.encode(np.zeros((12, 12, channels), np.uint8))
    assert len(encoder.encode(np.zeros((1, 12, 12, 3), np.uint8))) == 1
    assert len(encoder.encode(list(np.zeros((12, 12, 3), np.uint8)))) == 12
    assert len(encoder.encode(np.zeros((12, 12, 5), np.uint8))) == 12
