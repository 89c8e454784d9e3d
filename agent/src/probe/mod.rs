//! Probes: read facts, change nothing, answer within a time limit.
