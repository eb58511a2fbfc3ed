"""What a run's time was spent on, from the manifests of its finished stages."""

from collections.abc import Iterable, Sequence

from data.store import Manifest
from pco.report.numbers import StageReport, StageTime, Timings


def of(stages: Sequence[StageReport]) -> Timings:
    """Timings over all finished stages; at least one must be."""
    done = [(stage, stage.manifest) for stage in stages if stage.manifest is not None]
    began = min(manifest.started for _, manifest in done)
    ended = max(manifest.finished for _, manifest in done)
    inside = _covered((manifest.started, manifest.finished) for _, manifest in done)
    return Timings(
        began, ended, max(0.0, ended - began - inside), [_stage_time(stage, manifest) for stage, manifest in done]
    )


def _stage_time(stage: StageReport, manifest: Manifest) -> StageTime:
    metrics = manifest.metrics
    return StageTime(
        round=stage.round,
        name=stage.name,
        seconds=manifest.seconds,
        engine_start_s=metrics.get("engine_start_s", 0.0),
        work_s=metrics.get("sampling_s", 0.0) + metrics.get("training_s", 0.0),
        tokens=int(metrics.get("tokens", 0)),
        tokens_per_s=metrics.get("tokens_per_s"),
    )


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    """Seconds in at least one of the spans: stages may overlap."""
    total, reached = 0.0, float("-inf")
    for began, ended in sorted(spans):
        total += max(0.0, ended - max(began, reached))
        reached = max(reached, ended)
    return total
