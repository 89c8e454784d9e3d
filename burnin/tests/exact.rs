//! The oracle's promises: within the bound every order of summation gives the same bits, every flipped bit is
//! found, and a clean result is never accused.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "test helpers: a broken promise is a failed test"
)]

use proptest::prelude::*;
use whetstone_burnin::exact::{
    self, Accumulator, ExactCase, NotExact, Operands, Pattern, SplitMix64, WidthProbe, exact_plan,
};
use whetstone_burnin::suite::GemmFormat;

/// Adds `addends` as a tensor core does: aligned to the largest exponent, cut to `p` bits below it, then added.
/// `addends` are integers; the result is what is left.
fn align_truncate(addends: &[i128], p: u32) -> i128 {
    let top = addends.iter().map(|v| v.unsigned_abs()).max().unwrap_or(0);
    let width = 128 - top.leading_zeros();
    let cut = width.saturating_sub(p);
    addends.iter().map(|v| (v.unsigned_abs() >> cut << cut) as i128 * v.signum()).sum()
}

/// Sum of products in an accumulator of `p` bits, in blocks of `block` products.
fn truncating_sum(products: &[i128], block: usize, p: u32) -> i128 {
    let sum = products.chunks(block).fold(0i128, |sum, chunk| {
        let mut addends = vec![sum];
        addends.extend_from_slice(chunk);
        align_truncate(&addends, p)
    });
    align_truncate(&[sum], p)
}

/// Any machine that adds in the format's IEEE accumulator, one after another in the given order.
fn ieee_sum(accumulator: Accumulator, products: impl Iterator<Item = f64>) -> u64 {
    match accumulator {
        Accumulator::F64 => products.fold(0f64, |sum, p| sum + p).to_bits(),
        Accumulator::F32 => u64::from(products.fold(0f32, |sum, p| sum + p as f32).to_bits()),
        Accumulator::S32 => u64::from(products.fold(0i32, |sum, p| sum.wrapping_add(p as i32)) as u32),
    }
}

fn tree(accumulator: Accumulator, values: &[f64]) -> f64 {
    match values {
        [] => 0.0,
        [one] => *one,
        _ => {
            let (left, right) = values.split_at(values.len() / 2);
            let sum = tree(accumulator, left) + tree(accumulator, right);
            if accumulator == Accumulator::F32 { f64::from(sum as f32) } else { sum }
        }
    }
}

fn products(operands: &Operands, row: usize, column: usize) -> Vec<i128> {
    let k = operands.k;
    let (a, b) = (&operands.a[row * k..(row + 1) * k], &operands.b[column * k..(column + 1) * k]);
    a.iter().zip(b).map(|(a, b)| i128::from(*a) * i128::from(*b)).collect()
}

fn widths(format: GemmFormat) -> &'static [u32] {
    match format {
        GemmFormat::F64 => &[53],
        GemmFormat::S8 => &[31],
        GemmFormat::E4m3 | GemmFormat::E5m2 => &[13, 14, 24],
        _ => &[24],
    }
}

/// Every format, width, plan case: small enough to check each element in every order.
#[test]
fn any_order_gives_the_reference_bits() {
    let mut random = SplitMix64::new(7);
    for format in GemmFormat::ALL.iter().copied() {
        for p in widths(format).iter().copied() {
            for max_k in [64, 1024] {
                let plan = exact_plan(format, p, max_k);
                assert!(plan.len() >= 3, "{format:?} p={p}: {plan:?}");
                for case in plan {
                    check_orders(&case, &mut random);
                }
            }
        }
    }
}

fn check_orders(case: &ExactCase, random: &mut SplitMix64) {
    let operands = case.operands(6, 5, random.next_u64());
    let accumulator = case.format.accumulator();
    let expected = exact::reference(&operands);
    assert!(expected.iter().all(|bits| *bits != u64::MAX), "not representable: {case}");
    for (index, bits) in expected.iter().enumerate() {
        let (row, column) = (index / operands.columns, index % operands.columns);
        let scale = 2f64.powi(operands.row_exponents[row] + operands.column_exponents[column]);
        let integers = products(&operands, row, column);
        let values: Vec<f64> = integers.iter().map(|v| *v as f64 * scale).collect();
        let mut permuted = values.clone();
        for i in (1..permuted.len()).rev() {
            permuted.swap(i, random.below(i as u64 + 1) as usize);
        }
        let orders = [
            ieee_sum(accumulator, values.iter().copied()),
            ieee_sum(accumulator, values.iter().rev().copied()),
            ieee_sum(accumulator, permuted.iter().copied()),
            // +0.0: a tree has no accumulator that starts at +0.
            ieee_sum(accumulator, std::iter::once(tree(accumulator, &values) + 0.0)),
        ];
        assert_eq!(orders, [*bits; 4], "{:?} {case} element {index}", case.format);
        for block in [4, 16, 32] {
            let sum = truncating_sum(&integers, block, case.p);
            assert_eq!(
                sum,
                integers.iter().sum::<i128>(),
                "{:?} {case} p={} block {block}",
                case.format,
                case.p
            );
        }
    }
}

#[test]
fn beyond_the_bound_a_narrow_accumulator_does_round() {
    // m = 2, K = 8192 in a 14-bit accumulator: the case is refused, and rightly so.
    let refused = ExactCase::new(GemmFormat::E4m3, 14, 8192, 8192, 2, 2, Pattern::SameSign);
    assert!(matches!(refused, Err(NotExact::Bound { .. })));
    let wide = ExactCase::new(GemmFormat::E4m3, 24, 8192, 8192, 2, 2, Pattern::SameSign).unwrap();
    let operands = wide.operands(1, 1, 3);
    let integers = products(&operands, 0, 0);
    assert_ne!(truncating_sum(&integers, 32, 14), integers.iter().sum::<i128>());
}

#[test]
fn refuses_what_it_cannot_prove() {
    let new = |k, active, m, pattern| ExactCase::new(GemmFormat::S8, 31, k, active, m, m, pattern);
    assert!(matches!(new(65, 65, 1, Pattern::Symmetric), Err(NotExact::Shape { .. })));
    assert!(matches!(new(64, 0, 1, Pattern::Symmetric), Err(NotExact::Shape { .. })));
    assert!(matches!(new(64, 64, 128, Pattern::Symmetric), Err(NotExact::Element { limit: 127, .. })));
    assert!(matches!(new(64, 64, 5, Pattern::Scaled), Err(NotExact::Scale)));
    assert!(new(64, 64, 127, Pattern::SameSign).is_ok());
}

/// 1,000 seeded single-bit flips per precision, in any bit of any element of the accumulator: each is found
/// with its element and its bit, by the comparison and by the digest alone; and clean results never are.
#[test]
fn a_thousand_flips_per_precision_are_all_found() {
    for format in GemmFormat::ALL.iter().copied() {
        let mut random = SplitMix64::new(format as u64 + 1);
        let plan = exact_plan(format, widths(format)[0], 128);
        let accumulator_bits = 8 * format.accumulator().bytes() as u64;
        let (mut found, mut false_alarms) = (0, 0);
        for trial in 0..1000usize {
            let case = plan[trial % plan.len()];
            let operands = case.operands(8, 8, random.next_u64());
            let expected = exact::reference(&operands);
            let digest = exact::digest(&expected);
            // The machine under test: another order, so that a clean result is not a copy of the reference.
            let mut got: Vec<u64> = (0..expected.len())
                .map(|i| {
                    let (row, column) = (i / operands.columns, i % operands.columns);
                    let scale = 2f64.powi(operands.row_exponents[row] + operands.column_exponents[column]);
                    let values = products(&operands, row, column).into_iter().rev().map(|v| v as f64 * scale);
                    ieee_sum(format.accumulator(), values)
                })
                .collect();
            false_alarms += exact::diff(&expected, &got).len() + usize::from(exact::digest(&got) != digest);
            let (element, bit) = (random.below(got.len() as u64) as usize, random.below(accumulator_bits));
            got[element] ^= 1 << bit;
            let wrong = exact::diff(&expected, &got);
            let named = wrong.len() == 1 && wrong[0].index == element && wrong[0].xor() == 1 << bit;
            found += usize::from(named && exact::digest(&got) != digest && exact::wrong_bits(&wrong) == 1);
        }
        assert_eq!((found, false_alarms), (1000, 0), "{format:?}");
    }
}

/// A flip inside the computation, not of its result: one bit of one operand, or of a partial sum.
#[test]
fn a_flip_of_an_operand_or_a_partial_sum_is_found() {
    for format in GemmFormat::ALL.iter().copied() {
        let mut random = SplitMix64::new(99 + format as u64);
        let case = exact_plan(format, widths(format)[0], 128)[0];
        for _ in 0..100 {
            let operands = case.operands(4, 4, random.next_u64());
            let expected = exact::digest(&exact::reference(&operands));
            let mut broken = operands.clone();
            let at = random.below(broken.a.len() as u64) as usize;
            let column_is_zero = (0..4).all(|j| broken.b[j * broken.k + at % broken.k] == 0);
            broken.a[at] ^= 1;
            assert_eq!(
                exact::digest(&exact::reference(&broken)) == expected,
                column_is_zero,
                "{format:?} {case}"
            );
        }
    }
}

#[test]
fn the_digest_does_not_depend_on_the_order_of_the_threads() {
    let bits: Vec<u64> = (0..4096).map(exact::mix64).collect();
    let backwards =
        (0..bits.len()).rev().fold(0u64, |sum, i| sum.wrapping_add(exact::digest_term(i, bits[i])));
    assert_eq!(exact::digest(&bits), backwards);
    // Two elements exchanged are not the same tile.
    let mut exchanged = bits.clone();
    exchanged.swap(17, 18);
    assert_ne!(exact::digest(&exchanged), backwards);
    // A fixed value, so that the kernels' and this digest cannot drift apart unseen.
    assert_eq!(exact::digest(&[0, 1, 2]), 0x3987_f29a_be2b_0d45);
}

/// The probe reads back the width of a machine that keeps p bits.
#[test]
fn the_probe_measures_the_width() {
    for format in GemmFormat::ALL.iter().copied().filter(|f| *f != GemmFormat::S8) {
        for p in [12, 13, 14, 20, 22, 23, 24] {
            for (k, block) in [(64, 4), (512, 16), (512, 32)] {
                let probe = WidthProbe::new(format, 64, 64, k).unwrap();
                let operands = &probe.operands;
                let accumulator = format.accumulator();
                let results: Vec<u64> = (0..64 * 64)
                    .map(|i| {
                        let sum = truncating_sum(&products(operands, i / 64, i % 64), block, p);
                        accumulator.bits(sum as i64, 0).unwrap_or(u64::MAX)
                    })
                    .collect();
                let reach = if format == GemmFormat::E4m3 && k == 64 { 21 } else { 24 };
                assert_eq!(probe.width(&results), Ok(p.min(reach)), "{format:?} p={p} k={k} block={block}");
            }
        }
    }
    assert!(WidthProbe::new(GemmFormat::S8, 64, 64, 64).is_none());
}

#[test]
fn the_probe_tells_ieee_accumulators_and_nonsense_apart() {
    let ieee = |format: GemmFormat| {
        let probe = WidthProbe::new(format, 64, 64, 512).unwrap();
        let results: Vec<u64> = (0..64 * 64)
            .map(|i| {
                ieee_sum(
                    format.accumulator(),
                    products(&probe.operands, i / 64, i % 64).iter().map(|v| *v as f64),
                )
            })
            .collect();
        (probe, results)
    };
    let (probe, results) = ieee(GemmFormat::F64);
    assert_eq!(probe.width(&results), Ok(53));
    let (probe, results) = ieee(GemmFormat::F32);
    assert_eq!(probe.width(&results), Ok(24));
    assert!(probe.width(&vec![0; results.len()]).is_err());
    assert!(probe.width(&results[1..]).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Freivalds names exactly the rows that have one wrong element.
    #[test]
    fn freivalds_names_the_wrong_row(seed: u64, rows in 1usize..12, columns in 1usize..12, k in 1usize..20,
                                     bit in 0u32..64, place: prop::sample::Index) {
        let mut random = SplitMix64::new(seed);
        let mut fill = |n: usize| (0..n).map(|_| random.between(-1000, 1000) as i32).collect::<Vec<_>>();
        let (a, b) = (fill(rows * k), fill(columns * k));
        let mut c: Vec<i64> = (0..rows * columns)
            .map(|i| (0..k).map(|x| i64::from(a[i / columns * k + x]) * i64::from(b[i % columns * k + x])).sum())
            .collect();
        prop_assert_eq!(exact::freivalds(&a, &b, &c, k, columns, seed), Vec::<usize>::new());
        let at = place.index(c.len());
        c[at] ^= 1 << bit;
        prop_assert_eq!(exact::freivalds(&a, &b, &c, k, columns, !seed), vec![at / columns]);
    }

    /// Operands keep to what the case says, and are the same for the same seed.
    #[test]
    fn operands_keep_their_promise(seed: u64, format in prop::sample::select(GemmFormat::ALL.to_vec()),
                                   p in 8u32..54, k in 1usize..6) {
        for case in exact_plan(format, p, 64 * k) {
            let operands = case.operands(3, 3, seed);
            prop_assert_eq!(&operands, &case.operands(3, 3, seed));
            prop_assert!(operands.a.iter().all(|v| i64::from(*v).abs() <= case.m_a));
            prop_assert!(operands.b.iter().all(|v| i64::from(*v).abs() <= case.m_b));
            let nonzero = (0..case.k).filter(|x| (0..3).any(|r| operands.a[r * case.k + x] != 0)).count();
            prop_assert!(nonzero <= case.active);
            let decoded: Vec<f64> = exact::bits_from_bytes(&operands.a_bytes(), format.element_bytes())
                .into_iter().map(|bits| format.decode(bits)).collect();
            prop_assert_eq!(decoded, operands.a_values());
        }
    }
}
