//! Verdict rules: what a run's results mean for each device and for the blade.
