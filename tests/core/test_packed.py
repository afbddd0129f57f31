import gzip

import numpy as np
import pytest

from ovr.core.packed import MIN_LIMIT, check_arrays, open_gzip, open_gzip_text


@pytest.mark.parametrize(
    "array", [np.zeros((3, 0)), np.arange(6.0).reshape(2, 3).T, np.array(b"abc"), np.array(["äö", "x"]), np.ones(3, bool)]
)
def test_arrays_as_numpy_writes_them_pass(array, tmp_path):
    np.save(tmp_path / "x.npy", array)
    np.savez(tmp_path / "x.npz", a=array, **{"b.c": array})
    np.savez_compressed(tmp_path / "packed.npz", a=array)
    check_arrays(tmp_path / "x.npy")
    check_arrays(tmp_path / "x.npz")
    check_arrays(tmp_path / "packed.npz", compressed=True)
    with pytest.raises(ValueError, match=r"a\.npy is packed|it unpacks to"):
        check_arrays(tmp_path / "packed.npz")


@pytest.mark.parametrize(
    "change", [lambda data: data + b"x", lambda data: data[:-1], lambda data: b"", lambda data: b"\x93NUMPY\x09\x00" + data[8:]]
)
def test_a_file_that_is_not_what_its_header_says_is_refused(change, tmp_path):
    np.save(tmp_path / "x.npy", np.ones(5))
    data = (tmp_path / "x.npy").read_bytes()
    for bad in (data + b"x", data[:-1], b"", b"\x93NUMPY\x09\x00" + data[8:]):
        (tmp_path / "x.npy").write_bytes(bad)
        with pytest.raises(ValueError, match="its header"):
            check_arrays(tmp_path / "x.npy")


def test_two_arrays_of_one_name_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.ones(2), b=np.ones(3))
    data = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(data.replace(b"b.npy", b"a.npy"))
    with pytest.raises(ValueError, match="two of its arrays have one name"):
        check_arrays(tmp_path / "x.npz")


def test_gzipped_text_comes_back_and_a_bomb_does_not(tmp_path, rng):
    text = "".join(f"{value}\n" for value in rng.normal(size=2000)) + "ä\n"
    with gzip.open(tmp_path / "x.gz", "wt", encoding="utf-8") as file:
        file.write(text)
    with open_gzip_text(tmp_path / "x.gz", encoding="utf-8") as file:
        assert file.read() == text
    (tmp_path / "zeros.gz").write_bytes(gzip.compress(bytes(MIN_LIMIT)))  # small enough, however well it packs
    with open_gzip(tmp_path / "zeros.gz") as file:
        assert len(file.read()) == MIN_LIMIT
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(MIN_LIMIT)) * 2)
    with open_gzip(tmp_path / "bomb.gz") as file, pytest.raises(gzip.BadGzipFile, match="over 200 times as many; unpack it first"):
        file.read()
