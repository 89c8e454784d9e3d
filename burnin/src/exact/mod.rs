//! The exact-integer oracle: which operands make a GEMM exact, its reference, its digest.
