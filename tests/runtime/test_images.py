import shutil

import numpy as np
import pytest

from ovr.errors import InputError
from ovr.runtime.images import image_files, read_images

Image = pytest.importorskip("PIL.Image", reason="pip install 'ovr[images]'")


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.JPG", "in/c.gif"):
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (3, 2), 7).save(path)
    (tmp_path / "root" / ".cache").mkdir()
    (tmp_path / "root" / ".cache" / "x.bin").write_bytes(b"")
    return tmp_path / "root"


def test_a_folder_stands_for_the_images_below_it(folder):
    assert [file.relative_to(folder).as_posix() for file in read_images(folder)] == ["a.JPG", "b.png", "in/c.gif"]
    assert read_images(folder / "b.png") == [folder / "b.png"]


def test_a_csv_stands_for_its_paths_in_order(folder, tmp_path):
    (folder / "list.csv").write_text(f"n,file\n1,in/c.gif\n2,b.png\n3,{folder}/../root/a.JPG\n")
    assert [file.name for file in read_images(folder / "list.csv", column="file")] == ["c.gif", "b.png", "a.JPG"]
    with pytest.raises(InputError, match=r"has columns \['n', 'file'\]; expected one 'path' with the paths of images"):
        read_images(folder / "list.csv")
    for text, message in (
        ("path\n", "has a header but no rows"),
        ("path,n\na\n", "line 2 has 1 cells; the header has 2"),
        ("path,n\n,1\n", "line 2 has an empty path"),
        ('path\n"a\n', "cannot be read as CSV: unexpected end of data"),
    ):
        (folder / "list.csv").write_text(text)
        with pytest.raises(InputError, match=message):
            read_images(folder / "list.csv")
    with pytest.raises(InputError, match="cannot be read as CSV: No such file"):
        read_images(folder / "none.csv")


def test_an_array_is_not_read_as_a_whole(tmp_path, rng):
    np.save(tmp_path / "x.npy", rng.integers(256, size=(5, 3, 2), dtype=np.uint8))
    assert isinstance(read_images(tmp_path / "x.npy").base, np.memmap)
    with pytest.raises(InputError, match=r"no\.npy cannot be read: No such file"):
        read_images(tmp_path / "no.npy")


def test_all_that_cannot_be_used_is_named_at_once(folder):
    (folder / "b.png").write_bytes(b"")
    shutil.copy(folder / "in" / "c.gif", folder / "in" / "d.gif")
    (folder / "in" / "c.gif").write_bytes(b"GIF")
    with pytest.raises(InputError, match=r"2 of 4 images cannot be used: .*b\.png is no image .*; .*c\.gif is no image"):
        read_images(folder)
    (folder / "notes.txt").write_text("")
    with pytest.raises(InputError, match=r"holds files that are no images .*notes\.txt"):
        image_files(folder)
    (folder / "none").mkdir()
    with pytest.raises(InputError, match=r"none holds no image file"):
        read_images(folder / "none")
    with pytest.raises(InputError, match=r"x\.png cannot be read: No such file"):
        read_images(folder / "x.png")
