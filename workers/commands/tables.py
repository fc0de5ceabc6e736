"""Tables for a terminal, for the workers' commands."""

from __future__ import annotations

from rich.table import Table

from workers.batching.serving.tuned_backend import BackendDecision, MeasuredBackend


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
