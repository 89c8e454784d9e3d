//! The fleet judge: robust statistics per cohort with a stated false-positive rate.
