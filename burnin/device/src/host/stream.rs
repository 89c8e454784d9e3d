//! Seeded numbers: the same seed gives the same operands on every machine.

/// SplitMix64 (Steele, Lea, Flood 2014): one multiply-xor chain per number, any point of it reached at once.
#[derive(Debug, Clone)]
pub struct Stream(u64);

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The `index`-th number of the stream with this seed.
#[inline(always)]
pub fn at(seed: u64, index: u64) -> u64 {
    mix(seed.wrapping_add(STEP.wrapping_mul(index.wrapping_add(1))))
}

#[inline(always)]
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Stream {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    #[inline(always)]
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0)
    }

    /// A number under `bound` (not 0); the bias is below `bound` / 2^64.
    #[inline(always)]
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.word()) * u128::from(bound)) >> 64) as u64
    }

    /// An integer from `-limit` to `limit`.
    #[inline(always)]
    pub fn within(&mut self, limit: u32) -> i64 {
        self.below(2 * u64::from(limit) + 1) as i64 - i64::from(limit)
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.word().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_numbers_and_random_access_agree() {
        // The reference implementation's first three numbers for seed 1234567.
        let mut stream = Stream::new(1_234_567);
        let first: Vec<u64> = (0..3).map(|_| stream.word()).collect();
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
        assert_eq!((0..3).map(|i| at(1_234_567, i)).collect::<Vec<_>>(), first);
    }

    #[test]
    fn within_reaches_both_ends_and_no_further() {
        let mut stream = Stream::new(3);
        let seen: std::collections::BTreeSet<i64> = (0..1000).map(|_| stream.within(2)).collect();
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [-2, -1, 0, 1, 2]);
    }
}
