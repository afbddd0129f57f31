"""All K heads as one product against a loop over K modules: one training step of the heads on given features.

A step is forward, binary cross-entropy, backward and AdamW, the same on both sides; the losses are compared before anything is
timed. The peers: one module a head, with one loss and one optimizer over the joined logits (module loop), with a loss for each
head, and with a loss, a backward pass and an optimizer for each head (separate trainings). Ours has AdamW as
`conf/optimizer/adamw.yaml` makes it, which calls torch's fused kernel; the peers have torch's default, and in rows of their own
torch's fused form.

B = batch, D = features, K = heads
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from benchmarks.report import Row, interleaved, main  # first: it pins the number of threads
from ovr.head.linear import Linear
from ovr.head.mlp import Mlp
from ovr.optimizer.adamw import AdamW

B, D, HIDDEN = 64, 256, 16


class Loop(nn.Module):
    """The peer: one module a head."""

    def __init__(self, heads: nn.Module, num_heads: int) -> None:
        super().__init__()
        weights = [{name: torch.from_numpy(value) for name, value in heads.head_weights(k).items()} for k in range(num_heads)]
        self.heads = nn.ModuleList(self._head(heads.kind, weight) for weight in weights)

    @staticmethod
    def _head(kind: str, weight: dict[str, torch.Tensor]) -> nn.Module:
        last = nn.Linear(weight["weight"].shape[1], 1)
        last.load_state_dict({"weight": weight["weight"], "bias": weight["bias"]})
        if kind == "linear":
            return last
        first = nn.Linear(D, HIDDEN)
        first.load_state_dict({"weight": weight["hidden_weight"], "bias": weight["hidden_bias"]})
        return nn.Sequential(first, nn.ReLU(), last)

    def forward(self, z_BD: torch.Tensor) -> torch.Tensor:
        """Return logits (B, K)."""
        return torch.cat([head(z_BD) for head in self.heads], dim=1)


def joint_loss(heads: nn.Module, z_BD: torch.Tensor, target_BK: torch.Tensor) -> torch.Tensor:
    """Return the mean over rows of the sum over heads, in one call."""
    return binary_cross_entropy_with_logits(heads(z_BD), target_BK, reduction="sum") / len(z_BD)


def loss_a_head(loop: Loop, z_BD: torch.Tensor, target_BK: torch.Tensor) -> torch.Tensor:
    """Return the same, in one call a head."""
    losses = [joint_loss(head, z_BD, target_BK[:, k : k + 1]) for k, head in enumerate(loop.heads)]
    return torch.stack(losses).sum()


def stepper(
    heads: nn.Module,
    z_BD: torch.Tensor,
    target_BK: torch.Tensor,
    *,
    loss_of: Callable[..., torch.Tensor] = joint_loss,
    adamw: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
) -> Callable[[], torch.Tensor]:
    """Return a call that makes one training step of all heads and returns the loss before it."""
    optimizer = adamw(heads.parameters(), lr=0.002)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(heads, z_BD, target_BK)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def separate_trainings(loop: Loop, z_BD: torch.Tensor, target_BK: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Return the same with a loss, a backward pass and an optimizer for each head."""
    steps = [stepper(head, z_BD, target_BK[:, k : k + 1].clone()) for k, head in enumerate(loop.heads)]
    return lambda: torch.stack([step() for step in steps]).sum()


PEERS: dict[str, Callable[..., Callable[[], torch.Tensor]]] = {
    "module loop": stepper,
    "module loop, fused AdamW": partial(stepper, adamw=partial(torch.optim.AdamW, fused=True)),
    "module loop, a loss a head": partial(stepper, loss_of=loss_a_head),
    "separate trainings": separate_trainings,
}


def measure(quick: bool) -> Iterator[Row]:
    """Yield a row for each kind of head, K and peer."""
    torch.set_num_threads(1)
    kinds: dict[str, Callable[[int], nn.Module]] = {
        "linear": lambda k: Linear(D, num_heads=k),
        "mlp": lambda k: Mlp(D, num_heads=k, hidden=HIDDEN),
    }
    for kind, make in kinds.items():
        for k in (10, 100) if quick else (10, 100, 1000):
            torch.manual_seed(0)
            heads = make(k)
            batch = torch.randn(B, D), (torch.rand(B, k) < 0.1).float()
            steps = {name: make_step(Loop(heads, k), *batch) for name, make_step in PEERS.items()}
            ours = stepper(heads, *batch, adamw=partial(AdamW, fused=True))
            for _ in range(3):
                loss = ours()
                for step in steps.values():
                    torch.testing.assert_close(step(), loss, rtol=1e-3, atol=1e-3)
            seconds = interleaved({"ours": ours, **steps}, repeats=3 if quick else max(7, 1_000 // k))
            for name in PEERS:
                yield Row(
                    f"{kind} heads", name, k, seconds["ours"], seconds[name], "s", seconds[name] / seconds["ours"], f"B={B} D={D}"
                )


if __name__ == "__main__":
    main(measure, __doc__ or "")
