//! Facts about a blade, as probes read them; thresholds and health rules judge them.
