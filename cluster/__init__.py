"""The room that knows Ray: a session, its workers, and which of them gets which shard."""
