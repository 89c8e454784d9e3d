//! Element formats: which integers they hold, and how a number becomes bytes.

use crate::suite::GemmFormat;

/// What a GEMM of a format adds up in, and what its result is stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Accumulator {
    F64,
    F32,
    /// Wraps modulo 2^32, which is exact in any order.
    S32,
}

impl Accumulator {
    pub fn bytes(self) -> usize {
        match self {
            Accumulator::F64 => 8,
            Accumulator::F32 | Accumulator::S32 => 4,
        }
    }

    /// Significand bits (with the leading one) that the stored type has; the silicon may keep fewer while it adds.
    pub fn significand(self) -> u32 {
        match self {
            Accumulator::F64 => 53,
            Accumulator::F32 => 24,
            Accumulator::S32 => 31,
        }
    }

    /// The stored bits of `integer · 2^exponent`, zero-extended; `None` if the type cannot hold it exactly.
    /// Zero is +0. For `S32` the exponent must be 0 and the integer wraps.
    pub fn bits(self, integer: i64, exponent: i32) -> Option<u64> {
        match self {
            Accumulator::S32 => (exponent == 0).then_some(u64::from(integer as u32)),
            Accumulator::F64 => Layout::F64.encode(integer, exponent),
            Accumulator::F32 => Layout::F32.encode(integer, exponent),
        }
    }

    /// The number that stored bits stand for, as a double (which holds every value of all three types).
    pub fn value(self, bits: u64) -> f64 {
        match self {
            Accumulator::F64 => f64::from_bits(bits),
            Accumulator::F32 => f64::from(f32::from_bits(bits as u32)),
            Accumulator::S32 => f64::from(bits as u32 as i32),
        }
    }
}

/// A binary floating-point layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    exponent_bits: u32,
    mantissa_bits: u32,
    /// Bits below the mantissa that are stored as zero (tf32 lives in the upper 19 bits of an f32).
    padding: u32,
    /// The largest exponent code is an ordinary number but for the all-ones mantissa (OCP e4m3).
    finite_top: bool,
}

impl Layout {
    const F64: Layout = Layout { exponent_bits: 11, mantissa_bits: 52, padding: 0, finite_top: false };
    const F32: Layout = Layout { exponent_bits: 8, mantissa_bits: 23, padding: 0, finite_top: false };
    const TF32: Layout = Layout { exponent_bits: 8, mantissa_bits: 10, padding: 13, finite_top: false };
    const F16: Layout = Layout { exponent_bits: 5, mantissa_bits: 10, padding: 0, finite_top: false };
    const BF16: Layout = Layout { exponent_bits: 8, mantissa_bits: 7, padding: 0, finite_top: false };
    const E4M3: Layout = Layout { exponent_bits: 4, mantissa_bits: 3, padding: 0, finite_top: true };
    const E5M2: Layout = Layout { exponent_bits: 5, mantissa_bits: 2, padding: 0, finite_top: false };

    fn bias(self) -> i32 {
        (1 << (self.exponent_bits - 1)) - 1
    }

    /// Bits of `integer · 2^exponent`; `None` if it needs rounding, overflows or would be subnormal.
    fn encode(self, integer: i64, exponent: i32) -> Option<u64> {
        let sign = u64::from(integer < 0) << (self.exponent_bits + self.mantissa_bits);
        let magnitude = integer.unsigned_abs();
        if magnitude == 0 {
            return Some(0);
        }
        let top = 63 - magnitude.leading_zeros();
        let fraction = magnitude ^ (1 << top);
        let mantissa = if top <= self.mantissa_bits {
            fraction << (self.mantissa_bits - top)
        } else {
            let lost = top - self.mantissa_bits;
            if fraction.trailing_zeros() < lost && fraction != 0 {
                return None;
            }
            fraction >> lost
        };
        let code = i32::try_from(top).ok()?.checked_add(exponent)?.checked_add(self.bias())?;
        let last = (1 << self.exponent_bits) - 1;
        let all_ones = (1u64 << self.mantissa_bits) - 1;
        let fits =
            if self.finite_top { code < last || (code == last && mantissa != all_ones) } else { code < last };
        if code < 1 || !fits {
            return None;
        }
        Some((sign | (u64::try_from(code).ok()? << self.mantissa_bits) | mantissa) << self.padding)
    }

    /// Finite bits with a random sign and mantissa and an exponent within `spread` of 1.0 (0 keeps all finite ones).
    fn random(self, random: u64, spread: i32) -> u64 {
        let mantissa = random & ((1 << self.mantissa_bits) - 1);
        let sign = (random >> 63) << (self.exponent_bits + self.mantissa_bits);
        let last = (1 << self.exponent_bits) - 1;
        let (low, high) = if spread == 0 {
            (0, last - 1)
        } else {
            ((self.bias() - spread).max(1), (self.bias() + spread).min(last - 1))
        };
        let range = u64::from(high.abs_diff(low)) + 1;
        let code = u64::from(low.unsigned_abs()) + ((random >> 53) & 0x3ff) % range;
        (sign | (code << self.mantissa_bits) | mantissa) << self.padding
    }

    fn decode(self, bits: u64) -> f64 {
        let bits = bits >> self.padding;
        let mantissa = bits & ((1 << self.mantissa_bits) - 1);
        let code = (bits >> self.mantissa_bits) & ((1 << self.exponent_bits) - 1);
        let negative = (bits >> (self.mantissa_bits + self.exponent_bits)) & 1 == 1;
        let last = (1 << self.exponent_bits) - 1;
        let scale = |exponent: i32| 2f64.powi(exponent - self.bias() - self.mantissa_bits as i32);
        let magnitude = if code == last && !self.finite_top {
            if mantissa == 0 { f64::INFINITY } else { f64::NAN }
        } else if code == last && mantissa == (1 << self.mantissa_bits) - 1 {
            f64::NAN
        } else if code == 0 {
            mantissa as f64 * scale(1)
        } else {
            (mantissa | (1 << self.mantissa_bits)) as f64 * scale(code as i32)
        };
        if negative { -magnitude } else { magnitude }
    }
}

impl GemmFormat {
    /// The format's part of a kernel's name (`gemm_<this>_<path>`), also used in metric names.
    pub fn kernel_name(self) -> &'static str {
        match self {
            GemmFormat::F64 => "f64",
            GemmFormat::F32 => "f32",
            GemmFormat::Tf32 => "tf32",
            GemmFormat::F16 => "f16",
            GemmFormat::Bf16 => "bf16",
            GemmFormat::E4m3 => "e4m3",
            GemmFormat::E5m2 => "e5m2",
            GemmFormat::S8 => "s8",
        }
    }

    pub fn element_bytes(self) -> usize {
        match self {
            GemmFormat::F64 => 8,
            GemmFormat::F32 | GemmFormat::Tf32 => 4,
            GemmFormat::F16 | GemmFormat::Bf16 => 2,
            GemmFormat::E4m3 | GemmFormat::E5m2 | GemmFormat::S8 => 1,
        }
    }

    pub fn accumulator(self) -> Accumulator {
        match self {
            GemmFormat::F64 => Accumulator::F64,
            GemmFormat::S8 => Accumulator::S32,
            _ => Accumulator::F32,
        }
    }

    /// Largest m such that the format holds every integer of -m..=m. f64 and f32 hold more; these are the
    /// largest that are useful beside an accumulator of the same width.
    pub fn contiguous(self) -> i64 {
        match self {
            GemmFormat::F64 => 1 << 26,
            GemmFormat::F32 => 1 << 12,
            GemmFormat::Tf32 | GemmFormat::F16 => 1 << 11,
            GemmFormat::Bf16 => 1 << 8,
            GemmFormat::E4m3 => 1 << 4,
            GemmFormat::E5m2 => 1 << 3,
            GemmFormat::S8 => 127,
        }
    }

    /// Largest e such that all m·2^±e, m within [`Self::contiguous`], are normal numbers of the format and
    /// products of two such stay normal in the accumulator; 0 = cannot be scaled.
    pub fn scale_range(self) -> i32 {
        match self {
            GemmFormat::F64 => 100,
            GemmFormat::F32 | GemmFormat::Tf32 | GemmFormat::Bf16 => 20,
            GemmFormat::F16 => 4,
            GemmFormat::E4m3 => 4,
            GemmFormat::E5m2 => 8,
            GemmFormat::S8 => 0,
        }
    }

    /// Largest power of two that the width probe uses as an element.
    pub(super) fn probe_exponent(self) -> u32 {
        match self {
            GemmFormat::F64 => 28,
            GemmFormat::E4m3 => 8,
            GemmFormat::S8 => 6,
            _ => 14,
        }
    }

    fn layout(self) -> Option<Layout> {
        match self {
            GemmFormat::F64 => Some(Layout::F64),
            GemmFormat::F32 => Some(Layout::F32),
            GemmFormat::Tf32 => Some(Layout::TF32),
            GemmFormat::F16 => Some(Layout::F16),
            GemmFormat::Bf16 => Some(Layout::BF16),
            GemmFormat::E4m3 => Some(Layout::E4M3),
            GemmFormat::E5m2 => Some(Layout::E5M2),
            GemmFormat::S8 => None,
        }
    }

    /// The element's bits for `integer · 2^exponent`, zero-extended; `None` if it cannot be held exactly.
    pub fn encode(self, integer: i64, exponent: i32) -> Option<u64> {
        match self.layout() {
            Some(layout) => layout.encode(integer, exponent),
            None => (exponent == 0).then(|| i8::try_from(integer).ok()).flatten().map(|v| u64::from(v as u8)),
        }
    }

    /// The number that an element's bits stand for.
    pub fn decode(self, bits: u64) -> f64 {
        match self.layout() {
            Some(layout) => layout.decode(bits),
            None => f64::from(bits as u8 as i8),
        }
    }

    /// Random finite element bits whose products never overflow the accumulator: every mantissa, every sign,
    /// and all exponents that the format can afford.
    pub fn random_bits(self, random: u64) -> u64 {
        match self {
            GemmFormat::S8 => random & 0xff,
            // A sum of 65,536 products must stay finite in f32: |x| < 2^41 is far inside.
            GemmFormat::F64 | GemmFormat::F32 | GemmFormat::Tf32 | GemmFormat::Bf16 => {
                self.layout().map_or(0, |layout| layout.random(random, 40))
            }
            GemmFormat::F16 | GemmFormat::E4m3 | GemmFormat::E5m2 => {
                self.layout().map_or(0, |layout| layout.random(random, 0))
            }
        }
    }

    /// Appends an element's bits to a buffer, little-endian, in the format's size.
    pub fn push(self, bits: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(&bits.to_le_bytes()[..self.element_bytes()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_contiguous_integer_survives_its_encoding() {
        for format in GemmFormat::ALL.iter().copied() {
            let m = format.contiguous();
            let step = (m / 5000).max(1);
            for integer in (-m..=m).step_by(usize::try_from(step).unwrap()) {
                let bits = format.encode(integer, 0).unwrap();
                assert_eq!(format.decode(bits), integer as f64, "{format:?} {integer}");
            }
        }
    }

    #[test]
    fn the_first_gap_is_where_the_table_says() {
        for (format, gap) in [
            (GemmFormat::Tf32, 2049),
            (GemmFormat::F16, 2049),
            (GemmFormat::Bf16, 257),
            (GemmFormat::E4m3, 17),
            (GemmFormat::E5m2, 9),
            (GemmFormat::S8, 128),
        ] {
            assert_eq!(format.encode(gap, 0), None, "{format:?}");
        }
    }

    #[test]
    fn known_bit_patterns() {
        assert_eq!(GemmFormat::F16.encode(-2, 0), Some(0xc000));
        assert_eq!(GemmFormat::Bf16.encode(1, 0), Some(0x3f80));
        assert_eq!(GemmFormat::E4m3.encode(7, 6), Some(0x7e)); // 448, the largest
        assert_eq!(GemmFormat::E4m3.encode(1, 9), None); // 512
        assert_eq!(GemmFormat::E5m2.encode(7, 13), Some(0x7b)); // 57344, the largest
        assert_eq!(GemmFormat::Tf32.encode(3, 0), Some(u64::from(3f32.to_bits())));
        assert_eq!(GemmFormat::S8.encode(-1, 0), Some(0xff));
        assert_eq!(Accumulator::F32.bits(-12345, -3), Some(u64::from((-12345f32 / 8.0).to_bits())));
        assert_eq!(Accumulator::F32.bits((1 << 24) + 1, 0), None);
        assert_eq!(Accumulator::S32.bits(-5, 0), Some(0xffff_fffb));
    }

    #[test]
    fn scaled_integers_stay_exact() {
        for format in GemmFormat::ALL.iter().copied() {
            let (m, e) = (format.contiguous(), format.scale_range());
            for (integer, exponent) in [(1, -e), (m, -e), (1, e), (m, e), (m - 1, e), (m - 1, -e)] {
                let bits = format.encode(integer, exponent);
                let value = bits.map(|b| format.decode(b));
                assert_eq!(
                    value,
                    Some(integer as f64 * 2f64.powi(exponent)),
                    "{format:?} {integer} {exponent}"
                );
            }
        }
    }

    #[test]
    fn random_bits_are_finite_and_use_the_whole_mantissa() {
        for format in GemmFormat::ALL.iter().copied() {
            let (mut ones, mut zeros) = (0, 0);
            for i in 0..4000 {
                let bits = format.random_bits(super::super::mix64(i));
                assert!(format.decode(bits).is_finite(), "{format:?} {bits:#x}");
                ones |= bits;
                zeros |= !bits;
            }
            let mantissa = match format {
                GemmFormat::Tf32 => 0x3ff << 13,
                other => (1u64 << (other.layout().map_or(8, |l| l.mantissa_bits))) - 1,
            };
            assert_eq!((ones & mantissa, zeros & mantissa), (mantissa, mantissa), "{format:?}");
        }
    }
}
