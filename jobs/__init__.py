"""One file a command: parse the config, call, print, exit code; `config`, `recipe` and `usage` serve them all."""
