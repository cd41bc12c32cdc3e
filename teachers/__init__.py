"""Frozen teachers. One package a teacher, one protocol (`base`), one registry, one conformance suite (`testing`)."""
