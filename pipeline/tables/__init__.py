"""Tables: schemas, invariants and manifests, and Arrow files read and written with care."""
