"""Each kernel does what its plain twin does: on a CUDA device, or on a CPU through Triton-lang's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ovr.head_step import twins
from ovr.head_step.tiles import Optimizer, Settings, Tiles, scalars

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported
pytest.importorskip("triton", reason="needs Triton-lang (on a GPU machine it comes with torch; on a CPU: pip install triton)")
from ovr.head_step import kernels  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
SMALL = Tiles(64, 64, 32, stages=2) if DEVICE == "cuda" else Tiles(32, 32, 32)
SHAPES = [(37, 50, 40), (64, 64, 64), (1, 1, 8), (5, 130, 8), (130, 3, 72)]  # B, C, D: ragged, whole, smallest, narrow, flat
OPTIMIZERS = {
    "sgd": Settings(Optimizer.SGD),
    "momentum": Settings(Optimizer.SGD, state=("momentum_buffer",)),
    "nesterov": Settings(Optimizer.SGD, nesterov=True, state=("momentum_buffer",)),
    "adamw": Settings(Optimizer.ADAMW, state=("exp_avg", "exp_avg_sq")),
}
GROUP = {"lr": 0.1, "weight_decay": 0.01, "momentum": 0.9, "betas": (0.9, 0.99), "eps": 1e-8}
FIRST = 1000


def blocks(shape, tiles):
    num_rows, num_heads, _ = shape
    return -(-num_heads // tiles.heads), -(-num_rows // tiles.rows)


def entries(shape, share, generator):
    num_rows, num_heads, _ = shape
    chosen = (torch.rand(num_heads, num_rows, generator=generator) < share).nonzero()
    return chosen[:, 1].contiguous().to(DEVICE), (chosen[:, 0] + FIRST).contiguous().to(DEVICE)


def marks(module, shape, tiles, positive, unknown):
    code_CB = torch.zeros(shape[1], shape[0], dtype=torch.int8, device=DEVICE)
    flag_TS = torch.zeros(*blocks(shape, tiles), dtype=torch.int32, device=DEVICE)
    for (row, column), code in ((positive, 1), (unknown, 2)):
        bounds = torch.tensor([0, 0, len(row)], device=DEVICE)
        module.mark(row, column, bounds, 0, FIRST, code, code_CB, flag_TS, tiles)  # an empty chunk
        module.mark(row, column, bounds, 1, FIRST, code, code_CB, flag_TS, tiles)
    return code_CB, flag_TS


def inputs(shape, *, scale=1.0, dtype=torch.bfloat16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    num_rows, num_heads, num_features = shape
    weight_CD = torch.randn(num_heads, num_features, generator=generator) * scale
    bias_C, z_BD = torch.randn(num_heads, generator=generator), torch.randn(num_rows, num_features, generator=generator)
    shift_C, pos_weight_C = torch.randn(num_heads, generator=generator) * 0.1, torch.rand(num_heads, generator=generator) + 0.5
    lists = entries(shape, 0.05, generator), entries(shape, 0.02, generator)
    values = weight_CD.to(dtype), bias_C.to(dtype), z_BD.bfloat16(), shift_C, pos_weight_C
    return [value.to(DEVICE) for value in values], lists


def differentiated(module, shape, values, lists, *, tiles=SMALL, with_loss=True):
    weight_CD, bias_C, z_BD, shift_C, pos_weight_C = values
    stride = -(-shape[0] // 8) * 8
    grad_CB = torch.full((shape[1], stride), 7.0, dtype=torch.bfloat16, device=DEVICE)[:, : shape[0]]
    sums = [torch.full((blocks(shape, tiles)[1], shape[1]), 7.0, device=DEVICE) for _ in range(2)]
    code_CB, flag_TS = marks(twins, shape, tiles, *lists)
    module.differentiate(
        weight_CD.bfloat16(), z_BD, bias_C, shift_C, pos_weight_C, code_CB, flag_TS, grad_CB, sums[0],
        sums[1] if with_loss else None, tiles,
    )  # fmt: skip
    return grad_CB.float(), *sums


@pytest.mark.parametrize("shape", SHAPES)
def test_marks_are_those_of_the_twin_and_can_be_taken_back(shape):
    _, (positive, unknown) = inputs(shape)
    ours, theirs = (marks(module, shape, SMALL, positive, unknown) for module in (kernels, twins))
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1] != 0, theirs[1] != 0)  # which of two marks a flag holds does not matter
    for row, column in (positive, unknown):
        kernels.mark(row, column, torch.tensor([0, len(row)], device=DEVICE), 0, FIRST, 0, *ours, SMALL)
    assert not ours[0].any()
    assert not ours[1].any()


@pytest.mark.parametrize("with_loss", [True, False])
@pytest.mark.parametrize("scale", [1.0, 100.0, 0.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_sums_and_losses_are_those_of_the_twin(shape, scale, with_loss):
    values, lists = inputs(shape, scale=scale)
    ours, theirs = (differentiated(module, shape, values, lists, with_loss=with_loss) for module in (kernels, twins))
    torch.testing.assert_close(ours[0], theirs[0], rtol=1 / 128, atol=1e-30)  # a unit in the last place of bfloat16
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(ours[2], theirs[2], rtol=1e-5, atol=1e-4)  # untouched without loss


def test_without_entries_every_target_is_negative():
    shape = SHAPES[0]
    values, _ = inputs(shape)
    none = torch.zeros(0, dtype=torch.int64, device=DEVICE), torch.zeros(0, dtype=torch.int64, device=DEVICE)
    ours, theirs = (differentiated(module, shape, values, (none, none)) for module in (kernels, twins))
    assert (ours[0] > 0).all()
    torch.testing.assert_close(ours[0], theirs[0], rtol=1 / 128, atol=1e-30)


def test_gradients_keep_their_digits_where_the_sigmoid_is_next_to_zero_or_one():
    shape = (4, 4, 8)
    values, _ = inputs(shape, scale=0.0)
    values[1] = torch.tensor([-80.0, -20.0, 20.0, 80.0], device=DEVICE)
    values[3].zero_()
    values[4].fill_(1.0)
    positive = torch.tensor([0, 0, 0, 0], device=DEVICE), torch.arange(FIRST, FIRST + 4, device=DEVICE)
    none = torch.zeros(0, dtype=torch.int64, device=DEVICE), torch.zeros(0, dtype=torch.int64, device=DEVICE)
    grad_CB, _, loss_SC = differentiated(kernels, shape, values, (positive, none))
    logit = values[1].double()
    torch.testing.assert_close(grad_CB[:, 0].double(), -torch.sigmoid(-logit), rtol=1 / 128, atol=0.0)
    torch.testing.assert_close(grad_CB[:, 1].double(), torch.sigmoid(logit), rtol=1 / 128, atol=0.0)
    loss = torch.nn.functional.softplus(-logit) + 3 * torch.nn.functional.softplus(logit)
    torch.testing.assert_close(loss_SC.sum(0).double(), loss, rtol=1e-5, atol=0.0)


@pytest.mark.filterwarnings("ignore:invalid value")  # of NumPy, in the interpreter
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_logit_that_is_not_finite_shows_in_the_sum_of_its_head_alone(value):
    shape = SHAPES[0]
    values, lists = inputs(shape)
    values[1][3] = value
    _, bias_grad_SC, _ = differentiated(kernels, shape, values, lists)
    assert bias_grad_SC.sum(0).isnan().nonzero().flatten().tolist() == [3]


def updated(module, shape, values, grads, settings, *, counter=((1 << 40) + 5, 7), tiles=SMALL):
    (weight_CD, bias_C, z_BD, _, _), (grad_CB, bias_grad_SC) = values, grads
    weight_CD, bias_C = weight_CD.clone(), bias_C.clone()
    generator = torch.Generator().manual_seed(2)
    state = {
        name: tuple(torch.rand(value.shape, generator=generator).to(DEVICE) for value in (weight_CD, bias_C))
        for name in settings.state
    }
    bad_C, any_bad = torch.zeros(len(bias_C), dtype=torch.int8, device=DEVICE), torch.zeros(1, dtype=torch.int8, device=DEVICE)
    scalar = torch.tensor(scalars(settings, GROUP, num_rows=len(z_BD), step=3), device=DEVICE)
    module.update(
        weight_CD, bias_C, grad_CB, z_BD, bias_grad_SC, state, settings, scalar, torch.tensor(counter, device=DEVICE), FIRST, bad_C,
        any_bad, tiles,
    )  # fmt: skip
    return [weight_CD, bias_C, bad_C, any_bad, *(value for pair in state.values() for value in pair)]


def gradients(shape, values, lists, tiles=SMALL):
    stride = -(-shape[0] // 8) * 8
    grad_CB = torch.zeros(shape[1], stride, dtype=torch.bfloat16, device=DEVICE)[:, : shape[0]]
    exact, bias_grad_SC, _ = differentiated(twins, shape, values, lists, tiles=tiles)
    grad_CB.copy_(exact)
    return grad_CB, bias_grad_SC


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_updates_are_those_of_the_twin(shape, optimizer, dtype):
    values, lists = inputs(shape, dtype=dtype)
    grads = gradients(shape, values, lists)
    ours, theirs = (updated(module, shape, values, grads, OPTIMIZERS[optimizer]) for module in (kernels, twins))
    for value, twin in zip(ours, theirs, strict=True):
        if value.dtype == torch.bfloat16:  # the same bits are drawn; a sum in another order may carry where the twin does not
            assert (value != twin).float().mean() <= 1e-3 + (1.5 / value.numel() if DEVICE == "cuda" else 0)
            torch.testing.assert_close(value, twin, rtol=1 / 64, atol=1e-6)
        else:
            torch.testing.assert_close(value, twin, rtol=1e-4, atol=1e-5)


def test_heads_whose_sum_is_not_a_number_are_left_alone_and_noted():
    shape = SHAPES[0]
    values, lists = inputs(shape, dtype=torch.float32)
    grad_CB, bias_grad_SC = gradients(shape, values, lists)
    bias_grad_SC[1, 7] = float("nan")
    ours, theirs = (updated(module, shape, values, (grad_CB, bias_grad_SC), OPTIMIZERS["momentum"]) for module in (kernels, twins))
    assert torch.equal(ours[0][7], values[0][7])
    assert ours[1][7] == values[1][7]
    assert ours[2].nonzero().flatten().tolist() == [7]
    assert ours[3].tolist() == [1]
    for value, twin in zip(ours, theirs, strict=True):
        torch.testing.assert_close(value, twin, rtol=1e-4, atol=1e-5)


def test_other_steps_draw_other_bits():
    shape = SHAPES[1]
    values, lists = inputs(shape)
    grads = gradients(shape, values, lists)
    first = updated(kernels, shape, values, grads, OPTIMIZERS["sgd"])[0]
    for counter in ((5, 7), ((1 << 40) + 5, 8)):
        assert not torch.equal(updated(kernels, shape, values, grads, OPTIMIZERS["sgd"], counter=counter)[0], first)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from benchmarks import gpu_rounding
from ovr.head_step import kernels
from ovr.head_step.tiles import Optimizer, Tiles
from ovr.training import temperature_kernel

tiles = Tiles()


def compiled(kernel, types, constants, *, warps=4, product=False):
    # None among the types is an argument that is not given.
    constants = {**constants, **{name: None for name, kind in types.items() if kind is None}}
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    places = {(names.index(name),): value for name, value in constants.items()}
    aligned = [name for name in names if signature[name].startswith("*") or name in ("B", "C", "D", "N")]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    options = {"num_warps": warps, "num_stages": tiles.stages}
    made = triton.compile(ASTSource(kernel, signature, places, attributes), target=GPUTarget("cuda", 90, 32), options=options)
    if product:
        assert "wgmma.mma_async" in made.asm["ptx"], "not on Hopper's matrix units"
        assert "cp.async.bulk.tensor" in made.asm["ptx"], "not by Hopper's copy engine"
        assert 2 * made.metadata.shared <= 227 * 1024, "two tiles do not fit a multiprocessor"


ints = dict.fromkeys(("code_stride", "flag_stride", "sums_stride", "num_sums", "chunk", "first", "code", "B", "C", "D"), "i32")
longs = dict.fromkeys(("row_ptr", "column_ptr", "bounds_ptr", "counter_ptr"), "*i64")
floats = dict.fromkeys(("shift_ptr", "pos_weight_ptr", "bias_grad_ptr", "loss_ptr", "scalar_ptr"), "*fp32")
bytes = dict.fromkeys(("code_ptr", "bad_ptr", "any_bad_ptr"), "*i8")
common = {"weight_ptr": "*bf16", "bias_ptr": "*bf16", "flag_ptr": "*i32", **ints, **longs, **floats, **bytes}
block = lambda a, b: f"tensordesc<bf16[{a},{b}]>"

compiled(kernels._mark, common, {"TILE_C": tiles.heads, "TILE_B": tiles.rows, "BLOCK": 256})

blocks = {"weight": block(tiles.heads, tiles.depth), "z": block(tiles.rows, tiles.depth)}
blocks["grad"] = block(tiles.heads, tiles.rows // 4)
sizes = {"BLOCK_C": tiles.heads, "BLOCK_B": tiles.rows, "BLOCK_D": tiles.depth, "INTERPRETED": False}
for types in ({**common, "loss_ptr": None}, common):
    constants = {**sizes, "WITH_LOSS": types["loss_ptr"] is not None}
    compiled(kernels._differentiate, {**types, **blocks}, constants, warps=tiles.warps, product=True)

blocks = {"grad": block(tiles.heads, tiles.depth), "z": block(tiles.depth, tiles.rows)}
sizes = {"BLOCK_C": tiles.heads, "BLOCK_D": tiles.rows, "BLOCK_B": tiles.depth, "INTERPRETED": False}
first, second = ("moment_ptr", "bias_moment_ptr"), ("square_ptr", "bias_square_ptr")
for optimizer, nesterov, moments, weights in (
    (Optimizer.SGD, False, (), "*bf16"),
    (Optimizer.SGD, True, first, "*bf16"),
    (Optimizer.ADAMW, False, first + second, "*fp32"),
):
    constants = {**sizes, "OPTIMIZER": optimizer.value, "NESTEROV": nesterov, "MOMENTUM": bool(moments)}
    given = {name: "*fp32" if name in moments else None for name in first + second}
    types = {**common, **blocks, **given, "weight_ptr": weights, "bias_ptr": weights}
    compiled(kernels._update, types, constants, warps=tiles.warps, product=True)

types = dict.fromkeys(("setting_ptr", "scale_ptr", "before_ptr", "after_ptr"), "*fp64")
types |= dict.fromkeys(("num_rows_ptr", "num_positives_ptr"), "*i64")
types |= {"away_ptr": "*fp32", "stride": "i32", "N": "i32", "status_ptr": "*i8"}
for start in (1, 19):
    compiled(temperature_kernel._fit, types, {"START": start, "BLOCK": temperature_kernel._BLOCK}, warps=8)

types = {"weight_ptr": "*bf16", "grad_ptr": "*bf16", "lr": "fp32", "seed": "i32", "size": "i32"}
compiled(gpu_rounding._update, types, {"SIZE": gpu_rounding.BLOCK})
"""


@pytest.mark.slow
def test_every_kernel_compiles_for_hopper_without_a_gpu(tmp_path):
    file = tmp_path / "compile_kernels.py"
    file.write_text(COMPILE)
    root = str(Path(__file__).parents[2])
    unset = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = os.pathsep.join([root, *(entry for entry in sys.path if entry)])
    environment = {**unset, "PYTHONPATH": path, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"}
    result = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
