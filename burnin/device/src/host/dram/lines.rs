//! Patterns, a cache line at a time: written, checked, inverted in place and copied as fast as memory goes.

/// Words of a cache line.
const LINE: usize = 8;
/// Words that are compared before it is asked whether all were right: 4 KiB.
const BLOCK: usize = 64 * LINE;

/// What a word must hold, from its address and the pass's key alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// Each word its own address: finds address lines and decoders that mix up places.
    Address,
    /// One bit set, another one in each word and pass: finds lines that short or leak.
    WalkingOnes,
    WalkingZeros,
    /// The key in every word; written, inverted upwards, inverted downwards.
    Solid,
    /// Different in every word: finds what depends on the neighbours.
    Random,
}

/// The word of [`Pattern::Random`]: place and key through one multiplication and one shift, both of which vector units have.
/// Half the bits of neighbouring words differ; more randomness would be slower than memory.
#[inline(always)]
fn scatter(place: u64, key: u64) -> u64 {
    let mixed = (place ^ key).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

impl Pattern {
    pub fn as_str(self) -> &'static str {
        match self {
            Pattern::Address => "address",
            Pattern::WalkingOnes => "walking ones",
            Pattern::WalkingZeros => "walking zeros",
            Pattern::Solid => "moving inversions",
            Pattern::Random => "random",
        }
    }

    /// The word at an address, by definition; [`expect`] gives many at once.
    pub fn word(self, key: u64, address: u64) -> u64 {
        let place = (address / 8).wrapping_add(key) & 63;
        match self {
            Pattern::Address => address ^ key,
            Pattern::WalkingOnes => 1 << place,
            Pattern::WalkingZeros => !(1 << place),
            Pattern::Solid => key,
            Pattern::Random => scatter(address / 8, key),
        }
    }
}

/// What the 4 KiB from `address` on (a whole line) must hold. Loops over words in a row: they become plain vector code.
#[inline(always)]
fn expect(pattern: Pattern, key: u64, address: u64, to: &mut [u64; BLOCK]) {
    let first = (address / 8).wrapping_add(key);
    let place = |i: usize| first.wrapping_add(i as u64) & 63;
    match pattern {
        Pattern::Address => to.iter_mut().enumerate().for_each(|(i, w)| *w = (address + 8 * i as u64) ^ key),
        Pattern::WalkingOnes => to.iter_mut().enumerate().for_each(|(i, w)| *w = 1 << place(i)),
        Pattern::WalkingZeros => to.iter_mut().enumerate().for_each(|(i, w)| *w = !(1 << place(i))),
        Pattern::Solid => to.fill(key),
        Pattern::Random => {
            to.iter_mut()
                .enumerate()
                .for_each(|(i, w)| *w = scatter((address / 8).wrapping_add(i as u64), key));
        }
    }
}

/// Compiles a function twice: for the base CPU, and with the widest vectors, taken where the CPU has them.
macro_rules! widest {
    ($(#[$doc:meta])* pub fn $name:ident($($arg:ident: $t:ty),*) $(-> $out:ty)? $body:block) => {
        $(#[$doc])*
        pub fn $name($($arg: $t),*) $(-> $out)? {
            #[inline(always)]
            fn anywhere($($arg: $t),*) $(-> $out)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512dq,avx512vl,avx512bw")]
                fn avx512($($arg: $t),*) $(-> $out)? { anywhere($($arg),*) }
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $t),*) $(-> $out)? { anywhere($($arg),*) }
                let has_512 = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("avx512bw");
                if has_512 {
                    // SAFETY: the CPU has just said that it has these features.
                    return unsafe { avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the CPU has just said that it has this feature.
                    return unsafe { avx2($($arg),*) };
                }
            }
            anywhere($($arg),*)
        }
    };
}

widest! {
    /// Fills `words` (whole lines, aligned to one) with the pattern as if they began at address `base`. With `streaming`
    /// past the caches, so that what is read later comes from memory.
    pub fn write(pattern: Pattern, key: u64, words: &mut [u64], base: u64, streaming: bool) {
        let mut block = [0; BLOCK];
        for (number, to) in words.chunks_mut(BLOCK).enumerate() {
            expect(pattern, key, base + (number * BLOCK * 8) as u64, &mut block);
            if streaming {
                for (to, line) in to.chunks_exact_mut(LINE).zip(block.as_chunks().0) {
                    store_past_caches(to, *line);
                }
            } else {
                to.copy_from_slice(&block[..to.len()]);
            }
        }
        fence();
    }
}

widest! {
    /// The index of the first 4 KiB block of `words`, from `from` (a multiple of a block) on, that differs from the pattern.
    pub fn first_wrong_block(pattern: Pattern, key: u64, words: &[u64], base: u64, from: usize) -> Option<usize> {
        let mut expected = [0; BLOCK];
        for (number, block) in words[from..].chunks(BLOCK).enumerate() {
            let start = from + number * BLOCK;
            // The next block is on its way while this one is worked on: hardware does not look beyond a page.
            prefetch(words, start + BLOCK);
            expect(pattern, key, base + (start * 8) as u64, &mut expected);
            let mut wrong = 0;
            for (got, expected) in block.iter().zip(&expected) {
                wrong |= got ^ expected;
            }
            if wrong != 0 {
                return Some(start);
            }
        }
        None
    }
}

widest! {
    /// Checks each block against `expected` in every word and writes its inverse at once: upwards, or `downwards` through the
    /// blocks. Gives the blocks that were wrong (before they were overwritten, with what they held), at most `limit`.
    pub fn invert(words: &mut [u64], expected: u64, downwards: bool, limit: usize) -> Vec<(usize, Vec<u64>)> {
        let mut wrong_blocks = Vec::new();
        let blocks = words.len().div_ceil(BLOCK);
        for step in 0..blocks {
            let number = if downwards { blocks - 1 - step } else { step };
            let start = number * BLOCK;
            let end = (start + BLOCK).min(words.len());
            let block = &mut words[start..end];
            let mut wrong = 0;
            for word in block.iter() {
                wrong |= word ^ expected;
            }
            if wrong != 0 && wrong_blocks.len() < limit {
                wrong_blocks.push((start, block.to_vec()));
            }
            block.fill(!expected);
        }
        wrong_blocks
    }
}

widest! {
    /// Copies whole lines past the caches, as STREAM's copy does.
    pub fn copy(from: &[u64], to: &mut [u64]) {
        for (to, from) in to.chunks_exact_mut(LINE).zip(from.chunks_exact(LINE)) {
            let mut line = [0; LINE];
            line.copy_from_slice(from);
            store_past_caches(to, line);
        }
        fence();
    }
}

#[inline(always)]
fn prefetch(words: &[u64], start: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(block) = words.get(start..start + BLOCK) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        for line in block.chunks_exact(LINE) {
            // SAFETY: a hint about memory that is ours; it reads nothing that could be seen.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (words, start);
}

#[inline(always)]
fn store_past_caches(to: &mut [u64], line: [u64; LINE]) {
    #[cfg(target_arch = "x86_64")]
    if to.len() == LINE && to.as_ptr().addr().is_multiple_of(16) {
        use std::arch::x86_64::{__m128i, _mm_stream_si128};
        // SAFETY: SSE2 is part of x86-64; `to` is 64 bytes, aligned to 16, and ours alone; `line` is 64 bytes.
        unsafe {
            let parts: [__m128i; 4] = std::mem::transmute(line);
            let to = to.as_mut_ptr().cast::<__m128i>();
            for (i, part) in parts.into_iter().enumerate() {
                _mm_stream_si128(to.add(i), part);
            }
        }
        return;
    }
    to.copy_from_slice(&line);
}

/// Streamed stores are not ordered with others: before anybody reads them there must be a fence.
#[inline(always)]
fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64; a fence touches no memory of ours.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::pages::Pages;

    const ALL: [Pattern; 5] =
        [Pattern::Address, Pattern::WalkingOnes, Pattern::WalkingZeros, Pattern::Solid, Pattern::Random];

    #[test]
    fn what_is_written_either_way_is_what_is_checked_and_what_a_word_says() {
        let mut words: Pages<u64> = Pages::new(3 * BLOCK + 5 * LINE).unwrap();
        for (pattern, streaming) in ALL.into_iter().flat_map(|p| [(p, false), (p, true)]) {
            let base = 1 << 20;
            write(pattern, 77, &mut words, base, streaming);
            assert_eq!(first_wrong_block(pattern, 77, &words, base, 0), None, "{pattern:?}");
            for (i, word) in words.iter().enumerate() {
                assert_eq!(*word, pattern.word(77, base + 8 * i as u64), "{pattern:?} word {i}");
            }
            assert_eq!(
                first_wrong_block(pattern, 78, &words, base, 0),
                Some(0),
                "{pattern:?} holds whatever the key"
            );
        }
    }

    #[test]
    fn every_bit_of_every_word_walks() {
        for pattern in [Pattern::WalkingOnes, Pattern::WalkingZeros] {
            let seen = (0..64).fold(0u64, |seen, key| seen | pattern.word(key, 4096));
            let kept = (0..64).fold(u64::MAX, |kept, key| kept & pattern.word(key, 4096));
            assert_eq!((seen, kept), (u64::MAX, 0));
        }
    }

    #[test]
    fn inversion_reports_what_a_wrong_block_held() {
        let mut words: Pages<u64> = Pages::new(4 * BLOCK).unwrap();
        for downwards in [false, true] {
            words.fill(0xff00);
            words[2 * BLOCK + 9] ^= 1 << 40;
            let wrong = invert(&mut words, 0xff00, downwards, 8);
            assert_eq!(wrong.len(), 1);
            assert_eq!((wrong[0].0, wrong[0].1[9]), (2 * BLOCK, 0xff00 ^ 1 << 40));
            assert!(words.iter().all(|word| *word == !0xff00));
        }
    }
}
