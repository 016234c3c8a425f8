"""Zoo of the diagnostics: planted defences that must not pass as ok, and honest networks that must."""
