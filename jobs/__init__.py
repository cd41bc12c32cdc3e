"""One file a command: parse the config, call, print, exit code."""
