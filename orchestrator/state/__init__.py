"""What has happened so far: the state, and one reducer per kind of event."""
