"""Our policies as agents of NAVSIM's devkit. `agent` can be imported where the devkit is, `inputs` everywhere."""
