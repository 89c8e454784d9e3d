//! Health rules: facts + thresholds → findings.
