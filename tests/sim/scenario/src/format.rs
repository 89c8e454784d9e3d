//! Number formats of matrix products, by the names that suites and kernels use.

use serde::{Deserialize, Serialize};

macro_rules! formats {
    ($($(#[$doc:meta])* $variant:ident = $text:literal, $kernel:literal;)*) => {
        /// A number format. The text form (`"bf16"`, `"fp8_e4m3"`) is the one of suite files.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Format { $($(#[$doc])* #[serde(rename = $text)] $variant,)* }
        impl Format {
            pub const ALL: &'static [Format] = &[$(Format::$variant,)*];
            pub fn as_str(self) -> &'static str { match self { $(Format::$variant => $text,)* } }
            /// The name inside kernel names: `e4m3` in `gemm_e4m3_wgmma`.
            pub fn kernel(self) -> &'static str { match self { $(Format::$variant => $kernel,)* } }
        }
    };
}

formats! {
    F64 = "fp64", "f64";
    F32 = "fp32", "f32";
    Tf32 = "tf32", "tf32";
    F16 = "fp16", "f16";
    Bf16 = "bf16", "bf16";
    E4m3 = "fp8_e4m3", "e4m3";
    E5m2 = "fp8_e5m2", "e5m2";
    S8 = "int8", "s8";
}

impl Format {
    /// The format of a kernel named `gemm_<format>_<path>`; `None` for any other kernel.
    pub fn of_kernel(name: &str) -> Option<Format> {
        let format = name.strip_prefix("gemm_")?.split('_').next()?;
        Format::ALL.iter().copied().find(|f| f.kernel() == format)
    }

    /// Width of the accumulator's significand that `sku`'s matrix units keep, bits: 53 for fp64, 31 for int8
    /// (exact), 14 for FP8 on Ada and Hopper, else 24.
    pub fn accumulator_bits(self, compute_capability: (u32, u32)) -> u32 {
        match self {
            Format::F64 => 53,
            Format::S8 => 31,
            Format::E4m3 | Format::E5m2 if matches!(compute_capability, (8, 9) | (9, 0)) => 14,
            _ => 24,
        }
    }

    /// Bits of one accumulator element as kernels store it.
    pub fn accumulator_width(self) -> u32 {
        if self == Format::F64 { 64 } else { 32 }
    }
}
