"""Tables, figures, diagnostics and the report of a run."""
