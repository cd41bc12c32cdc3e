"""The contract between those who write shards and those who read them. Imports nothing of ours but itself."""
