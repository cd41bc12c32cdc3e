"""One file a job: parse the config, start or join Ray, drive, print. Only this folder knows Ray and the argv."""
