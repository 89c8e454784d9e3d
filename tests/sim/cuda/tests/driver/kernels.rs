//! The kernels against independent references: what they compute is right bit for bit, whatever the chip's width.
use crate::blade::{GEMMS, Gpu, on_blade};
use whetstone_burnin::exact::{self, WidthProbe};
use whetstone_burnin::suite::GemmFormat;

fn format_of(kernel: &str) -> GemmFormat {
    let name = kernel.split('_').nth(1).unwrap();
    GemmFormat::ALL.iter().copied().find(|f| f.kernel_name() == name).unwrap()
}

/// FP8 on Hopper keeps 14 bits on the tensor cores; everything else, and the CUDA cores, what the type has.
fn width(kernel: &str, hopper: bool) -> u32 {
    let format = format_of(kernel);
    match format {
        GemmFormat::E4m3 | GemmFormat::E5m2 if hopper => 14,
        _ => format.accumulator().significand(),
    }
}

/// Six SMs, so that eight blocks spread unevenly.
const SMALL: &str = "sms = 6\ngpus = 1\n";

#[test]
fn every_format_is_exact_on_exact_operands() {
    on_blade("kernels::every_format_is_exact_on_exact_operands", "h100", SMALL, || {
        let gpu = Gpu::open(0);
        for kernel in GEMMS {
            let format = format_of(kernel);
            // One resident chunk, two, a half one, and several in turn.
            for max_k in [64, 128, 192, 576] {
                let cases = exact::exact_plan(format, width(kernel, true), max_k);
                for (seed, case) in cases.iter().enumerate().filter(|(i, _)| max_k != 576 || i % 3 == 0) {
                    let operands = case.operands(64, 64, seed as u64);
                    let expected = exact::reference(&operands);
                    let result = gpu.gemm(kernel, &operands, 8, 2).unwrap();
                    for (block, tile) in result.tiles.iter().enumerate() {
                        let wrong = exact::diff(&expected, &result.bits[block]);
                        assert!(wrong.is_empty(), "{kernel} {case} block {block}: {:?}", wrong[0]);
                        assert_eq!(tile.digest, exact::digest(&expected), "{kernel} {case}");
                        assert_eq!(result.digests[block], tile.digest, "{kernel} {case}");
                        assert_eq!((tile.smid, tile.mismatches), (block as u32 % 6, 0), "{kernel} {case}");
                        assert!(tile.end_ns > tile.start_ns, "{kernel} {case}");
                    }
                    // The last tile is read by the first block: other SMs than wrote them.
                    assert_eq!(result.readers[7], 0);
                }
            }
        }
    });
}

/// Operands over the whole range: nothing is exact, and all blocks and iterations agree all the same.
#[test]
fn full_range_operands_give_the_same_bits_everywhere() {
    on_blade("kernels::full_range_operands_give_the_same_bits_everywhere", "h100", SMALL, || {
        let gpu = Gpu::open(0);
        for kernel in GEMMS {
            let format = format_of(kernel);
            let [a, b] = [1, 2].map(|seed| exact::full_range_bytes(format, 64, 192, seed));
            let result = gpu.gemm_bytes(kernel, &a, &b, 192, format.accumulator().bytes(), 7, 3).unwrap();
            let first = result.tiles[0].digest;
            assert!(result.tiles.iter().all(|t| t.digest == first && t.mismatches == 0), "{kernel}");
            let values: Vec<f64> =
                result.bits[0].iter().map(|bits| format.accumulator().value(*bits)).collect();
            assert!(values.iter().all(|v| v.is_finite()) && values.iter().any(|v| *v != 0.0), "{kernel}");
        }
    });
}

fn probed(kernel: &str) -> u32 {
    let gpu = Gpu::open(0);
    let probe = WidthProbe::new(format_of(kernel), 64, 64, 512).unwrap();
    let result = gpu.gemm(kernel, &probe.operands, 1, 1).unwrap();
    probe.width(&result.bits[0]).unwrap()
}

#[test]
fn hopper_keeps_14_bits_of_fp8_and_24_of_the_rest() {
    on_blade("kernels::hopper_keeps_14_bits_of_fp8_and_24_of_the_rest", "h100", SMALL, || {
        for kernel in GEMMS.into_iter().filter(|k| format_of(k) != GemmFormat::S8) {
            assert_eq!(probed(kernel), width(kernel, true), "{kernel}");
        }
    });
}

#[test]
fn blackwell_keeps_24_bits_of_fp8() {
    on_blade("kernels::blackwell_keeps_24_bits_of_fp8", "b200", SMALL, || {
        for kernel in ["gemm_e4m3_mma", "gemm_e5m2_mma", "gemm_bf16_mma"] {
            assert_eq!(probed(kernel), 24, "{kernel}");
        }
    });
}

/// The tensor core cuts where IEEE arithmetic rounds: 1 + 2^-24 + 2^-24 is 1 there and 1 + 2^-23 in exact arithmetic.
#[test]
fn what_does_not_fit_is_cut_not_rounded() {
    on_blade("kernels::what_does_not_fit_is_cut_not_rounded", "h100", SMALL, || {
        let gpu = Gpu::open(0);
        let (mut a, mut b) = (vec![0_u8; 64 * 64 * 2], vec![0_u8; 64 * 64 * 2]);
        let (one, tiny) = (0x3f80_u16, 0x3980_u16); // 1, 2^-12
        for (operand, values) in [(&mut a, [one, tiny, tiny]), (&mut b, [one, tiny, tiny])] {
            for (i, value) in values.into_iter().enumerate() {
                operand[2 * i..2 * i + 2].copy_from_slice(&value.to_le_bytes());
            }
        }
        let result = gpu.gemm_bytes("gemm_bf16_mma", &a, &b, 64, 4, 1, 1).unwrap();
        assert_eq!(result.bits[0][0], u64::from(1f32.to_bits()));
    });
}

fn pattern(kind: u32, seed: u64, index: u64) -> u64 {
    let word = match kind & 0x7fff_ffff {
        0 => (index * 8) ^ seed,
        1 => 1 << (index.wrapping_add(seed) % 64),
        2 => !(1 << (index.wrapping_add(seed) % 64)),
        3 => seed,
        _ => exact::mix64(seed.wrapping_add((index + 1).wrapping_mul(exact::GOLDEN))),
    };
    if kind >> 31 == 1 { !word } else { word }
}

#[test]
fn memory_kernels_write_find_and_invert_every_pattern() {
    on_blade("kernels::memory_kernels_write_find_and_invert_every_pattern", "h100", SMALL, || {
        let gpu = Gpu::open(0);
        let (seed, first) = (0x0123_4567_89ab_cdef, 1000);
        // Fewer words than threads, and a number that no thread count divides.
        for words in [5_usize, 10_007] {
            for kind in [0, 1, 2, 3, 4, 1 << 31, 1 << 31 | 4] {
                let mut memory = gpu.stream.alloc_zeros::<u64>(words).unwrap();
                gpu.fill(&mut memory, first, kind, seed).unwrap();
                let expected: Vec<u64> = (0..words as u64).map(|i| pattern(kind, seed, first + i)).collect();
                assert_eq!(gpu.stream.clone_dtoh(&memory).unwrap(), expected, "pattern {kind:#x}");
                assert_eq!(gpu.verify(&memory, first, kind, seed), (vec![], 0));

                for descending in [0_u32, 1] {
                    let now = if descending == 0 { kind } else { kind ^ 1 << 31 };
                    let (_, found) = gpu.invert(&memory, first, now, seed, descending);
                    assert_eq!(found, 0);
                }
                // Twice inverted: as it was. Then one bit of one word goes wrong.
                assert_eq!(gpu.stream.clone_dtoh(&memory).unwrap(), expected);
                let mut wrong = expected.clone();
                wrong[3] ^= 1 << 40;
                gpu.stream.memcpy_htod(&wrong, &mut memory).unwrap();
                let (faults, found) = gpu.verify(&memory, first, kind, seed);
                assert_eq!(found, 1);
                let fault = faults[0];
                assert_eq!((fault.word_index, fault.pass), (first + 3, 3));
                assert_eq!((fault.expected, fault.got ^ fault.expected), (expected[3], 1 << 40));
            }
        }
    });
}
