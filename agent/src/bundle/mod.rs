//! The signed bundle of one run.
