"""Tables, pictures, progress and the report of a run."""
