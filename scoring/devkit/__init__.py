"""The devkit's own metric caches, read without the devkit."""
