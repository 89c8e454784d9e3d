//! The kernel log understood: fault catalogue, classifier, policy.
