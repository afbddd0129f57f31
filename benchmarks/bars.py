"""The bars of the measurements on a CPU: how many times better than its peer a row must be. Knows rows, not how they come about."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Bar:
    """What is demanded of the rows of a kind, whatever their other sizes: each is held against it."""

    script: str  # whose rows
    what: str
    against: str
    least: float | None = None  # ratio
    most: float | None = None  # of our own figure, in the row's unit
    k: int | None = None  # None: any number of heads
    k_from: int = 0
    unit: str | None = None  # of the row; None: any

    def applies(self, row: Mapping[str, Any]) -> bool:
        """Return whether a row of the script is held against this bar."""
        given = row["k"] or 0
        is_k = given >= self.k_from if self.k is None else given == self.k
        return (row["what"], row["against"]) == (self.what, self.against) and is_k and self.unit in (None, row["unit"])

    def met(self, row: Mapping[str, Any]) -> bool:
        """Return whether the row is good enough."""
        value: float = row["ratio"] if self.most is None else row["ours"]
        return value >= self.least if self.least is not None else self.most is not None and value <= self.most

    def text(self, unit: str) -> str:
        """Return the demand."""
        return f"at least {self.least:.3g}x" if self.least is not None else f"at most {self.most:.4g}{unit_text(unit)}"


def unit_text(unit: str) -> str:
    """Return a unit as it stands behind a figure."""
    return "" if unit == "1" else f" {unit}"


ONE_VS_REST = "OneVsRestClassifier(LogisticRegression)"
BARS = (
    Bar("heads", "linear heads", "module loop", k=10, least=8),
    Bar("heads", "linear heads", "module loop", k=100, least=12),
    Bar("heads", "linear heads", "module loop", k_from=1000, least=15),
    Bar("heads", "mlp heads", "module loop", k_from=100, least=2.5),
    Bar("head_step", "head step fp32", "dense", k=100_000, least=1.7),
    Bar("head_step", "head step fp32", "dense", k=1_000_000, least=2.3),
    Bar("head_step", "head step fp32", "torch.compile", k=100_000, least=1.25),
    Bar("head_step", "head step fp32", "torch.compile", k=1_000_000, least=1.6),
    Bar("head_step", "head step fp32", "bare GEMMs", k_from=100_000, least=0.8),
    Bar("head_step", "head step bf16", "dense", k_from=100_000, least=4.5),
    Bar("head_step", "peak memory above weights", "dense", k=1_000_000, least=100),
    Bar("head_step", "peak memory above weights", "dense", k=1_000_000, most=16),
    Bar("lightning_loop", "Lightning loop", "bare loop", k_from=100_000, least=1 / 1.05),
    Bar("convex", "exact heads on frozen features", ONE_VS_REST, k=10, least=1),
    Bar("convex", "exact heads on frozen features", ONE_VS_REST, k=100, least=5),
    Bar("sgd_heads", "sgd heads, time to equal accuracy", ONE_VS_REST, k=10, least=10),
    Bar("sgd_heads", "sgd heads, time to equal accuracy", ONE_VS_REST, k=100, least=50),
    Bar("calibration", "temperature", "LBFGS loop", k_from=100, least=30),
    Bar("calibration", "temperature", "netcal", k_from=100, least=25),
    Bar("calibration", "temperature", "scikit-learn", k_from=100, least=60),
    Bar("calibration", "temperature, largest relative error of T", "SciPy bounded Brent", most=1e-6),
    Bar("export", "fused graph, batch 1", "backbone and K head sessions", k=10, least=10),
    Bar("export", "fused graph, batch 1", "backbone and K head sessions", k=100, least=80),
    Bar("export", "fused graph, batch 1", "backbone and K head sessions", k_from=1000, least=400),
    Bar("export", "a checked bundle, one file a head", "-", k=1000, most=5, unit="s wall"),
    Bar("million_heads", "peak of memory", "-", k_from=1_000_000, most=6, unit="GiB"),
)


def told(script: str, row: Mapping[str, Any]) -> str:
    """Return how a row of a script stands to its bars, "" if it has none."""
    bars = [bar for bar in BARS if bar.script == script and bar.applies(row)]
    return "; ".join(f"bar {bar.text(row['unit'])}: {'met' if bar.met(row) else 'MISSED'}" for bar in bars)
