# SPDX-License-Identifier: Apache-2.0
"""A calibration as a profile file, as tables of residuals, and as a figure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from mars.bench.calibrate import FITTED, Fit, Samples, predicted
from mars.profiles import Profile

HEADS = ("", "measured (ms)", "fitted (ms)", "off")


def profile_text(profile: Profile, fit: Fit, kv_tokens: int | None, source: str) -> str:
    """The profile file; ``source`` says when and where it was measured."""
    lines = [
        "# SPDX-License-Identifier: Apache-2.0",
        f"# Measured: {source}",
        f"# Prefill: R2 {fit.r2_prefill:.4f}, at most {fit.error_prefill:.1%} off.",
        f"# Decode: R2 {fit.r2_decode:.4f}, at most {fit.error_decode:.1%} off.",
        f'gpu = "{profile.gpu}"',
        f'model = "{profile.model}"',
    ]
    if kv_tokens is not None:
        lines.append(f"kv_tokens = {kv_tokens}")
    lines += ["", "[cost]", *(f"{n} = {getattr(fit.cost, n):.6e}" for n in FITTED)]
    lines += ["", "[sources]", f"cost = {json.dumps('mars calibrate: ' + source)}"]
    return "\n".join(lines) + "\n"


def rows(samples: Samples, fit: Fit) -> Iterator[list[str]]:
    """Measured against fitted, one row a sample."""
    prefills, decodes = predicted(samples, fit.cost, fit.overhead_s)
    for sample, fitted in zip(samples.prefills, prefills, strict=True):
        yield _row(f"prefill of {sample.num_tokens:,}", sample.seconds, fitted)
    for sample, fitted in zip(samples.decodes, decodes, strict=True):
        label = f"decode, {sample.batch} x {sample.context_tokens:,}"
        yield _row(label, sample.seconds, fitted)


def _row(label: str, measured_s: float, fitted_s: float) -> list[str]:
    off = fitted_s / measured_s - 1.0
    return [label, f"{1e3 * measured_s:.2f}", f"{1e3 * fitted_s:.2f}", f"{off:+.1%}"]


def draw(samples: Samples, fit: Fit) -> Any:
    """Measured points and fitted curves."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from mars.bench.experiment_plots import COLOURS
    from mars.bench.plots import STYLE, WIDTH_INCHES

    prefills, decodes = predicted(samples, fit.cost, fit.overhead_s)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        lengths = [p.num_tokens for p in samples.prefills]
        left.loglog(lengths, [1e3 * p.seconds for p in samples.prefills], "o", color=COLOURS[0])
        left.loglog(lengths, 1e3 * prefills, color=COLOURS[1], lw=1.2)
        left.set_title(f"Time to first token (ms), R2 {fit.r2_prefill:.4f}")
        left.set_xlabel("prompt tokens")
        batches = sorted({d.batch for d in samples.decodes})
        for index, batch in enumerate(batches):
            here = [i for i, d in enumerate(samples.decodes) if d.batch == batch]
            xs = [samples.decodes[i].context_tokens for i in here]
            colour = COLOURS[index % len(COLOURS)]
            measured = [1e3 * samples.decodes[i].seconds for i in here]
            right.semilogx(xs, measured, "o", color=colour, label=f"batch {batch}")
            right.semilogx(xs, [1e3 * decodes[i] for i in here], color=colour, lw=1.2)
        right.set_title(f"Time between tokens (ms), R2 {fit.r2_decode:.4f}")
        right.set_xlabel("context tokens of each sequence")
        right.set_ylim(bottom=0)
        right.legend(ncols=2)
    return figure
