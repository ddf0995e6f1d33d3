"""What /metrics tells, in Prometheus' words."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0)


class Metrics:
    """One server's numbers, in a registry of its own."""

    def __init__(self):
        registry = self._registry = CollectorRegistry()
        self.sessions = Gauge("imtalker_sessions", "Live sessions that are open", registry=registry)
        self.frames = Counter(
            "imtalker_frames", "Live frames: sent, skipped (no time to draw), dropped (slow viewer)", ["what"],
            registry=registry,
        )  # fmt: skip
        self.answer = Histogram(
            "imtalker_answer_seconds", "From sound after a pause to its first frame", buckets=SECONDS, registry=registry
        )
        self.refused = Counter("imtalker_refused", "Requests that were refused", ["reason"], registry=registry)
        self.queue = Gauge("imtalker_jobs_waiting", "Jobs that wait for their turn", registry=registry)
        self.jobs = Counter("imtalker_jobs", "Jobs that ended", ["state"], registry=registry)
        self.share = Gauge("imtalker_frames_share", "Share of frames that there is time to draw", registry=registry)
        for what in ("sent", "skipped", "dropped"):
            self.frames.labels(what)

    def text(self) -> bytes:
        return generate_latest(self._registry)
