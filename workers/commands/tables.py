"""Tables for a terminal, for the workers' commands."""

from __future__ import annotations

from rich.table import Table

from workers.batching.serving.processor_load import BUSY
from workers.batching.serving.tuned_backend import BackendDecision, MeasuredBackend
from workers.training.pareto.tuning_run import TunedFile


def decision_table(decision: BackendDecision) -> Table:
    """Return the table of measured backends, with the choice in its caption."""
    reference = decision.candidates[0]
    tasks = sorted({task for measured in decision.candidates for task in measured.accuracy})
    table = Table("backend", "items/s", "of torch-fp32", "agreement", "shift", "same", *tasks, "")
    for measured in sorted(decision.candidates, key=lambda one: -one.items_per_s):
        table.add_row(
            str(measured.backend),
            *_figures(measured, reference),
            *(f"{measured.accuracy[task]:.1%}" if task in measured.accuracy else "" for task in tasks),
            _remark(measured, decision),
        )
    rates = ", ".join(f"{cost:,}: {rate:,.0f}/s" for cost, rate in decision.rates.items())
    table.title = f"{decision.model} on {decision.device}, {decision.sample} inputs, by {decision.guard}"
    table.caption = f"batches of at most {decision.batch_cost:,} ({rates})"
    if decision.provisional:
        table.caption += f"; provisional: other programs took {decision.others:.0%} of the processors, so tune again"
    return table


def _remark(measured: MeasuredBackend, decision: BackendDecision) -> str:
    if measured.backend == decision.backend:
        return "chosen"
    chosen = next(one for one in decision.candidates if one.backend == decision.backend)
    return measured.refused or ("less precise, not surely faster" if measured.fastest > chosen.items_per_s else "")


def _figures(measured: MeasuredBackend, reference: MeasuredBackend) -> tuple[str, ...]:
    if not measured.items_per_s:  # the backend does not run here
        return ("", "", "", "", "")
    return (
        f"{measured.items_per_s:,.0f}",
        f"{measured.items_per_s / reference.items_per_s:.2f}",
        f"{measured.agreement:.4f}",
        f"{measured.shift:.4f}",
        f"{measured.same:.1%}",
    )


def front_table(found: TunedFile) -> Table:
    """Return the table of a Pareto front, with the original's reference and the choice, and the refused backends."""
    points = [point for run in found.runs.values() for point in run]
    tasks = sorted({task for point in points for task in point.accuracy})
    table = Table("variant", "backend", "threads", "batch", *tasks, "items/s", "ms a pass", "MB of memory", "")
    for point in found.front:
        table.add_row(
            point.variant,
            str(point.backend),
            str(point.threads or "all"),
            f"{point.batch_cost:,}",
            *(f"{point.accuracy[task]:.1%}" for task in tasks),
            f"{point.items_per_s:,.0f}",
            f"{point.latency_ms:,.1f}",
            f"{point.memory_mb:,.0f}",
            "chosen" if point == found.chosen else "",
        )
    running = sum(not point.refused for point in points)
    judged = f"judged by {found.rows}" if found.rows else "judged by equal answers to samples"
    table.title = f"{found.model} on {found.device}, {judged}: {len(found.front)} of {running} points that none beats"
    notes = []
    if (busiest := max(point.others for point in points)) > BUSY:
        notes = [
            f"provisional: other programs took up to {busiest:.0%} of the processors; measure again into a new folder"
        ]
    refused = dict.fromkeys(f"{one.variant} on {one.backend}: {one.refused}" for one in points if one.refused)
    table.caption = "\n".join([*notes, *refused]) or None
    return table
