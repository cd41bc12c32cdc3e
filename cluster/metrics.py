"""A run's figures as metrics of Ray, which Prometheus scrapes from every node of a cluster: one more way to watch it.

The driver records them, so they are at the metrics port of the driver's node. Prometheus knows the figure ``scenes`` as
``ray_last_shards_scenes_total`` and ``shards_left`` as ``ray_last_shards_shards_left``; `EXPORTED` has all names.
"""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Mapping
from typing import Any

import ray
from ray.util.metrics import Counter, Gauge

from pipeline.stores.retry import without_credentials

COUNTERS = {
    "scenes": "Scenes of committed shards, by this run.",
    "bytes": "Bytes of committed shards, by this run.",
    "retries": "Shards that were given back and tried again.",
    "quarantined": "Samples left out, by reason, counted once for each column.",
}
"""Figure -> what it is; these only grow."""
GAUGES = {
    "scenes_per_second": "Mean since the first worker was ready.",
    "device_utilisation": "Share of that time in which the workers' devices were at work (0 to 1).",
    "shards_left": "Shards that have no commit record yet.",
    "eta_seconds": "Seconds until all shards are done, at the mean rate.",
    "workers": "Workers that have loaded their teachers.",
}
"""The same; of what is None nothing is recorded."""
EXPORTED = {f"ray_last_shards_{name}" for name in GAUGES} | {f"ray_last_shards_{name}_total" for name in COUNTERS}
"""The names that Prometheus has."""
_BY = {"quarantined": "reason"}
_NO_AGENT = -1


class Metrics:
    """The metrics of one run; made where a Ray runs.

    Args:
        dataset: where the run writes; its label, without credentials, so that runs of one cluster can be told apart.
    """

    def __init__(self, dataset: str) -> None:
        self._label = {"dataset": without_credentials(dataset)}
        tags = {name: ("dataset", *([_BY[name]] if name in _BY else [])) for name in [*COUNTERS, *GAUGES]}
        self._counters = {n: Counter(f"last_shards_{n}", COUNTERS[n], tag_keys=tags[n]) for n in COUNTERS}
        self._gauges = {n: Gauge(f"last_shards_{n}", GAUGES[n], tag_keys=tags[n]) for n in GAUGES}
        self._counted: Count[tuple[str, str]] = Count()

    def show(self, figures: Mapping[str, Any]) -> None:
        """Record the figures, name -> number; of those by reason a mapping of numbers."""
        for name, gauge in self._gauges.items():
            if figures[name] is not None:
                gauge.set(figures[name], self._label)
        for name, counter in self._counters.items():
            by = figures[name].items() if name in _BY else [("", figures[name])]
            for which, number in by:
                if more := number - self._counted[name, which]:
                    self._counted[name, which] = number
                    counter.inc(more, self._label | ({_BY[name]: which} if name in _BY else {}))


def told() -> str:
    """Where the metrics of this process's node are, in a line for a person; or that this Ray has none."""
    here = ray.get_runtime_context().get_node_id()
    node = next((node for node in ray.nodes() if node["NodeID"] == here), None)  # type: ignore[no-untyped-call]
    if node is None:
        return "metrics: Ray does not list this node yet, so their address is not known"
    if node["MetricsExportPort"] == _NO_AGENT:
        return "metrics: none, since this Ray was installed without its agent (pip install 'ray[default]' has it)"
    return f"metrics: http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
