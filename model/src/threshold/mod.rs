//! Thresholds and SKU profiles as data, and their linter.
