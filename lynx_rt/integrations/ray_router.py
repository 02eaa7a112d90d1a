"""Ray Serve's router by the policies of lynx_rt.integrations.placement. Needs the extra: pip install "lynx_rt[ray]"."""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from lynx_rt.integrations.placement import Placement, PromptKey


class Router(RequestRouter):  # type: ignore[misc]
    """Ranks the replicas for each request; Serve takes the first that has room, by its max_ongoing_requests.

    Every handle, so every replica of the ingress, has a router of its own, which knows of its own requests only.
    """

    def initialize_state(self, policy: str = "pack", fill: int = 32, **_: Any) -> None:
        self._placement = Placement(policy, fill)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        self._placement.keep([replica.replica_id for replica in replicas])

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        key = PromptKey()
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # else it asks again at once while all are full
            key = pending_request.kwargs.get("key") or key
        by_id = {replica.replica_id: replica for replica in candidate_replicas}
        names = sorted(by_id, key=lambda name: name.unique_id)
        return [[by_id[name]] for name in self._placement.ranked(names, key)]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        key = pending_request.kwargs.get("key") or PromptKey()
        self._placement.add(replica_id, pending_request.metadata.internal_request_id, key)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        self._placement.remove(replica_id, internal_request_id)
