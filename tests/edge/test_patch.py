"""A patch on a device: applied whole or not at all, to its own base alone, and refused where a byte of it is another."""

import base64
import ctypes
import hashlib
import os
import random
import shutil
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import pytest

from ovr.core import exchange as exchanges
from ovr.core.exchange import exchange, replaced_directory
from ovr.core.files import canonical_json, sha256_bytes, staging_name
from ovr.edge import patch_file
from ovr.edge.__main__ import main
from ovr.edge.apply import apply_patch
from ovr.edge.matches import copies
from ovr.edge.patch_file import patch_bytes, read_patch
from ovr.edge.payload import folded, folded_size, unfolded
from ovr.errors import ArtifactError
from ovr.runtime.edge_files import checked_model
from tests.edge.exports import content, export, forged, pair, patch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def files(tmp_path):
    """A base, a new export, their patch, and a copy of the base."""
    old, new = pair(tmp_path)
    shutil.copytree(old, tmp_path / "device")
    return old, new, patch(old, new, tmp_path / "patch"), tmp_path / "device"


def parts_of(file):
    with file.open("rb") as opened:
        return {part.name: part for part in read_patch(opened, "it").parts}


def refused(said, file, directory, **settings):
    before, names = content(directory), sorted(os.listdir(directory.parent))
    with pytest.raises(ArtifactError, match=said):
        apply_patch(file, directory, **settings)
    assert content(directory) == before
    assert sorted(os.listdir(directory.parent)) == names


def test_a_directory_becomes_the_new_one_and_a_second_time_stays_it(files):
    old, new, file, device = files
    assert file.stat().st_size < 1800  # 96 weights, and some 900 of names and digests
    (device / "card.json").chmod(0o600)
    device.chmod(0o750)
    assert apply_patch(file, device).is_new
    assert content(device) == content(new)
    assert device.stat().st_mode & 0o777 == 0o750
    assert (device / "card.json").stat().st_mode & 0o777 == 0o600
    assert (device / "signatures").stat().st_mode & 0o777 == 0o750
    assert (device / "signatures" / "export.json").stat().st_mode & 0o777 == 0o600
    before = (device / "model.onnx").stat()
    assert not apply_patch(file, device).is_new
    assert (device / "model.onnx").stat() == before
    assert content(old) != content(new)


def test_a_new_directory_is_not_made_within_the_base(files, tmp_path):
    _, _, file, device = files
    (tmp_path / "link").symlink_to(device)
    for out in (device, device / "sub", device / "a" / "b", tmp_path / "link" / "sub"):
        refused("is within .*device, which takes no other files; choose a place outside", file, device, out=out)


def drop_rights_of_root():
    """Let modes count for what this process then runs, as they do for everybody but root."""
    for capability in (1, 2, 3):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
        ctypes.CDLL(None).prctl(24, capability)  # PR_CAPBSET_DROP


def test_a_read_only_directory_is_replaced_and_nothing_of_it_stays(files):
    old, new, file, device = files
    back = patch(new, old, file.with_name("back"))
    before = sorted(os.listdir(device.parent))
    for applied, expected in ((file, new), (back, old)):  # the second is applied to one with a folder within
        for path in (*device.rglob("*"), device):
            path.chmod(0o555 if path.is_dir() else 0o444)
        command = [sys.executable, "-m", "ovr.edge", "apply", str(applied), str(device)]
        done = subprocess.run(command, capture_output=True, text=True, preexec_fn=drop_rights_of_root, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert content(device) == content(expected)
        assert {path.stat().st_mode & 0o777 for path in (device, *device.rglob("*"))} == {0o555, 0o444}
        assert sorted(os.listdir(device.parent)) == before


def test_what_a_killed_one_left_of_a_read_only_directory_is_swept(tmp_path):
    left, elsewhere = tmp_path / ".d.tmp", tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o750)
    (left / "a" / "b").mkdir(parents=True)
    (left / "a" / "link").symlink_to(elsewhere)
    for path in (left / "a" / "b", left / "a", left):
        path.chmod(0)
    code = "import sys; from pathlib import Path; from ovr.core.files import remove_tree; remove_tree(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(left)], preexec_fn=drop_rights_of_root, check=True)
    assert os.listdir(tmp_path) == ["elsewhere"]
    assert elsewhere.stat().st_mode & 0o777 == 0o750


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_root_applies_stays_its_owners(files):
    _, _, file, device = files
    for path in (device, *device.iterdir()):
        os.chown(path, 4321, 4322)
    apply_patch(file, device)
    assert {(path.stat().st_uid, path.stat().st_gid) for path in (device, *device.rglob("*"))} == {(4321, 4322)}


def test_the_command_needs_numpy_alone_and_tells_what_was_done(files, capsys):
    old, new, file, device = files
    heavy = ("onnxruntime", "onnx", "torch", "hydra", "cryptography", "tritonclient")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({heavy})); from ovr.edge.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "apply", str(file), str(device)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert f"bytes by a patch of {file.stat().st_size}" in done.stdout
    assert content(device) == content(new)
    assert main(["apply", str(file), str(device)]) == 0
    assert "is what the patch makes already; nothing was written" in capsys.readouterr().out
    assert main(["apply", str(file), str(old), "--out", str(device.parent / "out")]) == 0
    assert content(device.parent / "out") == content(new)
    assert main(["apply", str(file), str(new), "--out", str(device.parent / "other")]) == 1
    assert "is for another base" in capsys.readouterr().err
    assert main(["apply", str(file), str(old), "--out", "/proc/none/out"]) == 1
    assert "cannot be written or read" in capsys.readouterr().err


def test_a_patch_that_is_killed_at_any_point_leaves_the_old_export_or_the_new(tmp_path):
    command = [sys.executable, "-m", "tests.edge.killed_patches", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    points, made, left = map(int, done.stdout.split())
    assert points > 20
    assert 0 < made < left < points


def test_who_opens_the_directory_while_it_is_replaced_finds_it_whole(files):
    old, new, file, device = files
    back, stop, seen = patch(new, old, device.parent / "back"), threading.Event(), set()

    def swap():
        for number in range(40):
            apply_patch(back if number % 2 else file, device)
        stop.set()

    thread = threading.Thread(target=swap)
    thread.start()
    while not stop.is_set():
        seen.add(checked_model(device).stat().st_size)
    thread.join()
    assert len(seen) == 2


def test_another_base_is_refused_before_anything_is_written(files, tmp_path):
    old, _, file, device = files
    said = "is for another base than .*: card.json is [0-9a-f]{12} of [0-9]+ bytes, the patch is for"
    refused(said, file, export(tmp_path / "a", b"other"))
    (device / "signatures").mkdir()
    (device / "signatures" / "bundle.sig").write_text("{}")
    refused("signatures/bundle.sig is [0-9a-f]{12} of 2 bytes, the patch is for none", file, device)
    both = export(tmp_path / "b", b"other")
    shutil.copy(old / "card.json", both)
    refused("model.onnx is", file, both)
    refused("is no directory that `ovr export target=edge` wrote", file, tmp_path)
    refused("exists already", file, old, out=device)


def test_a_base_of_the_right_digest_and_another_size_is_refused_before_anything_is_made_of_it(files):
    _, _, file, device = files
    claimed = forged(file, set_at("base", "model.onnx", "size_bytes", 1 << 30))  # which would let 4 GiB be made
    refused("model.onnx is ([0-9a-f]{12}) of 20000 bytes, the patch is for \\1 of 1073741824 bytes", claimed, device)
    refused("of 1073741824 bytes", claimed, device, out=device.with_name("out"))


def test_without_what_locks_a_directory_it_is_said_where_patches_are_applied(files):
    _, _, file, device = files
    code = "import sys; sys.modules['fcntl'] = None; from ovr.edge.__main__ import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "apply", str(file), str(device)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    said = "error: patches need Linux, or with --out another POSIX system; copy the new export whole\n"
    assert (done.returncode, done.stderr) == (1, said)


def test_other_files_in_the_directory_are_not_lost(files):
    _, _, file, device = files
    (device / "rows.csv").write_text("1,2")
    (device / "signatures").mkdir()
    (device / "signatures" / "mine").write_text("")
    refused("holds rows.csv, signatures/mine, which is no part of an edge export; move it elsewhere", file, device)


def test_what_is_no_patch_is_refused(files, tmp_path):
    _, _, file, device = files
    refused("does not exist", tmp_path / "none", device)
    os.mkfifo(tmp_path / "pipe")
    refused("is no regular file", tmp_path / "pipe", device)
    file.write_bytes(b"")
    refused("is no patch that `ovr edge diff` wrote", file, device)


@pytest.mark.parametrize(
    "header", [b"[]", b'{"schema_version":1,"base":null,"new":{}}', b'{"schema_version":1,"base":{"card.json":7},"new":{}}']
)
def test_a_header_of_another_shape_is_told_in_its_own_words(files, header):
    _, _, file, device = files
    refused("applies: its header is of another shape than `ovr edge diff` writes$", forged(file, header=header), device)


def test_a_patch_cut_short_anywhere_is_refused(files, tmp_path):
    _, _, file, device = files
    data = file.read_bytes()
    for size in (*range(0, len(data), 37), len(data) - 32, len(data) - 1):
        (tmp_path / "cut").write_bytes(data[:size])
        refused("was cut short or changed|is no patch", tmp_path / "cut", device)
    (tmp_path / "cut").write_bytes(data + b"\0")
    refused("was cut short or changed", tmp_path / "cut", device)


def test_a_bit_that_is_another_is_noticed_wherever_it_is(files, tmp_path):
    _, _, file, device = files
    data, draw = file.read_bytes(), random.Random(0)
    for place in range(draw.randrange(3), len(data), 3):
        flipped = bytearray(data)
        flipped[place] ^= 1 << draw.randrange(8)
        (tmp_path / "flipped").write_bytes(flipped)
        with pytest.raises(ArtifactError), (tmp_path / "flipped").open("rb") as opened:
            read_patch(opened, "flipped")
    refused("was cut short or changed", tmp_path / "flipped", device)


def set_at(*keys):
    """Return a change of the value at these keys to the last of them."""
    *path, last, value = keys

    def change(said):
        for key in path:
            said = said[key]
        said[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (set_at("schema_version", 2), "schema_version 2; this ovr reads 1"),
        (lambda s: s.pop("base"), "its header lacks 'base'"),
        (
            lambda s: s["new"].update({"../../escaped": s["new"]["card.json"]}),
            "a file '../../escaped'; expected some of model.onnx",
        ),
        (lambda s: s["base"].update({"/etc/passwd": s["base"]["card.json"]}), "a file '/etc/passwd'"),
        (lambda s: s["new"].pop("card.json"), "it has no card.json, or not one model"),
        (lambda s: s["base"].update({"model.ort": s["base"]["model.onnx"]}), "or not one model"),
        (set_at("new", "card.json", "sha256", "x"), "'x' is no SHA-256"),
        (set_at("new", "card.json", "sha256", 7), "is no patch that this ovr applies"),
        (set_at("new", "card.json", "size_bytes", True), "a size is True; expected a whole number up to"),
        (set_at("new", "card.json", "size_bytes", -1), "a size is -1"),
        (set_at("new", "card.json", "size_bytes", 1 << 40), "a size is 1099511627776"),
        (set_at("new", "card.json", "ops", [1]), "the sizes of card.json are"),
        (set_at("new", "model.onnx", "ops", [9, 1 << 25]), "the sizes of model.onnx are"),
        (set_at("new", "model.onnx", "size_bytes", 1 << 29), "it is to make 536.* bytes; at most"),
        (set_at("new", "model.onnx", "size_bytes", 1 << 20), "its ops make 20004 bytes .*; expected 1048576"),
        (set_at("new", "signatures/bundle.sig", "payload", [0, 1 << 20]), "the payload of signatures/bundle.sig is at"),
        (set_at("new", "signatures/bundle.sig", "payload", [1 << 20, 1]), "the payload of signatures/bundle.sig is at"),
        (set_at("new", "signatures/bundle.sig", "size_bytes", 1 << 27), "bundle.sig is to be 134217728 bytes; at most 67108864"),
        (set_at("base", "model.onnx", "size_bytes", 100), "it copies bytes .* of 100"),
        (lambda s: s["new"]["card.json"]["ops"].__setitem__(1, 5000), "it ends [0-9]+ bytes too early"),
        (set_at("new", "card.json", "literals", [1 << 20, 5]), "it ends before its header or its signatures"),
        (lambda s: s["new"]["model.onnx"]["ops"].__setitem__(1, 7), "it unpacks to more bytes than it says"),
    ],
)
def test_a_header_that_lies_is_refused_though_its_digest_is_right(files, change, said):
    _, _, file, device = files
    refused(said, forged(file, change), device)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"[]", "is no patch that this ovr applies"),
        (b'{"base":1,"base":2}', "key 'base' is there twice"),
        (b"[" * 60_000, "is no patch that this ovr applies"),
        (b'{"x":NaN}', "it holds NaN"),
        (b" " * 70_000, "its header or its signatures have 70000 bytes; expected at most 65536"),
    ],
)
def test_a_header_that_is_none_is_refused(files, header, said):
    _, _, file, device = files
    refused(said, forged(file, header=header), device)


def test_bytes_that_follow_and_signatures_that_are_none_are_refused(files):
    _, _, file, device = files
    good = file.read_bytes()
    refused("9 bytes follow where it should end", forged(file, more=b"something"), device)
    file.write_bytes(good)
    none = canonical_json({"schema_version": 1, "signatures": [1]})
    cut = good[: good.rindex(b'{"schema_version":1,"signatures"') - 4] + len(none).to_bytes(4, "little") + none
    file.write_bytes(cut + hashlib.sha256(cut).digest())
    refused("holds no signatures that this ovr reads", file, device)


def test_a_bomb_is_refused_without_being_unpacked(files):
    _, _, file, device = files
    bomb = zlib.compress(bytes(64 << 20), 9)

    def change(said):
        said["new"] = {name: {**row, "ops": [len(bomb), 30], "literals": [0, 0]} for name, row in said["new"].items()}

    refused("it unpacks to more bytes than it says", forged(file, change, bodies=bomb * 4), device)


def test_what_does_not_give_the_named_digest_takes_nothings_place(files):
    _, _, file, device = files
    refused("does not make the model.onnx that it names", forged(file, set_at("new", "model.onnx", "sha256", "0" * 64)), device)
    old, new = content(device), {**content(device), "model.onnx": b"a model that its card knows nothing of"}
    file.write_bytes(patch_bytes(old, new, copies))
    refused("model.onnx was changed or cut short", file, device)


def test_literals_that_do_not_unpack_are_refused(files):
    _, _, file, device = files
    card, data = parts_of(file)["card.json"], bytearray(file.read_bytes())
    data[card.start + card.ops[0]] ^= 0xFF
    signed = bytes(data[:-32])
    file.write_bytes(signed + hashlib.sha256(signed).digest())
    refused("does not make card.json: it cannot be unpacked", file, device)


def test_a_change_of_the_base_by_another_meanwhile_is_noticed(files, monkeypatch):
    _, _, file, device = files
    other = export(device.parent / "other", b"another model")
    check = patch_file.read_patch

    def late(*arguments):
        monkeypatch.setattr("ovr.edge.apply._check_base", lambda *_: shutil.copy(other / "card.json", device))
        return check(*arguments)

    monkeypatch.setattr("ovr.edge.apply.read_patch", late)
    with pytest.raises(ArtifactError, match="was changed by another process meanwhile; apply the patch again"):
        apply_patch(file, device)


def test_the_signature_of_a_bundle_is_patched_as_what_it_stands_for(tmp_path, rng):
    names = [f"{rng.bytes(32).hex()} of heads/{k}/model.onnx" for k in range(300)]
    old, new = (export(tmp_path / name, b"model") for name in ("old", "new"))
    for directory, files in ((old, names), (new, [*names[:40], "one name more", *names[40:]])):
        (directory / "signatures").mkdir()
        payload = base64.b64encode("\n".join(files).encode()).decode()
        (directory / "signatures" / "bundle.sig").write_text(f'{{"payload":"{payload}"}}')
    file = patch(old, new, tmp_path / "patch")
    part = parts_of(file)["signatures/bundle.sig"]
    assert part.ops[0] + part.literals[0] < 100 < 20_000 < part.size_bytes
    apply_patch(file, old)
    assert content(old) == content(new)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no base64",
        b"A" * 63,
        b"A" * 65,
        b'{"x":"' + b"A" * 200 + b'"}',
        b"QUJD" * 30 + b"QQ==",
        b"x " + b"QUJD" * 30 + b"QR==",
    ],
)
def test_base64_is_taken_apart_where_it_comes_back_as_it_was(data):
    plain, span = unfolded(data)
    assert folded(plain, span) == data
    assert len(plain) - span[1] + folded_size(span[1]) == len(data)
    assert (span[1] > 0) == (len(data) > 65 and not data.endswith(b"QR=="))


def test_the_limits_of_ops_lead_to_a_whole_file(files, monkeypatch):
    old, new, file, device = files
    monkeypatch.setattr(patch_file, "MAX_OPS", 1)
    patch(old, new, file)
    assert [part.is_whole for part in parts_of(file).values()] == [True] * 4
    apply_patch(file, device)
    assert content(device) == content(new)


def test_one_at_a_time_replaces_a_directory(tmp_path):
    (tmp_path / "d").mkdir()
    with (
        replaced_directory(tmp_path / "d"),
        pytest.raises(ArtifactError, match="is being replaced by another process; wait"),
        replaced_directory(tmp_path / "d"),
    ):
        pass


def test_a_link_to_a_directory_stays_one(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "link").symlink_to("d")
    with replaced_directory(tmp_path / "link") as staging:
        (staging / "f").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "d" / "f").read_text() == "new"


def test_where_nothing_can_change_places_nothing_does(tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    with pytest.raises(ArtifactError, match=r"cannot change places with what is to replace it \(No such file or directory"):
        exchange(tmp_path / "none", tmp_path / "d")
    monkeypatch.setattr(exchanges.ctypes, "CDLL", lambda *_, **__: object())
    with pytest.raises(ArtifactError, match="Function not implemented"), replaced_directory(tmp_path / "d") as staging:
        (staging / "f").write_text("new")
    assert os.listdir(tmp_path) == ["d"]
    assert os.listdir(tmp_path / "d") == []


def test_what_a_killed_one_left_is_swept_though_nothing_is_to_do(files):
    _, _, file, device = files
    apply_patch(file, device)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = Path(str(staging_name(device)).replace(f"-{os.getpid()}-", f"-{gone.pid}-"))
    left.mkdir()
    assert not apply_patch(file, device).is_new
    assert not left.exists()
    assert sha256_bytes(file.read_bytes()[:-32]) == file.read_bytes()[-32:].hex()
