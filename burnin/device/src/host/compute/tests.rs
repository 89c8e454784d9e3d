use std::sync::atomic::{AtomicU64, Ordering};

use super::gemm::block::{Micro, Shape, Workspace, multiply};
use super::gemm::oracle::{Answer, Check, Operand, Recipe};
use super::gemm::units;
use super::*;
use crate::host::bench::Tap;
use crate::host::bench::testing::Rig;
use crate::host::pages::Pages;
use crate::host::stream::Stream;
use whetstone_model::report::TestOutcome;

/// A product of a ragged shape on one unit, its check, and the recipe it came from.
fn product<A, B, C>(unit: &'static Micro<A, B, C>, recipe: Recipe) -> (Pages<C>, Check)
where
    A: Operand + Default,
    B: Operand + Default,
    C: Answer + Default + std::ops::Add<Output = C>,
{
    let Shape { m, n, k } = recipe.shape;
    let (mut a, mut b) = (Pages::new(m * k).unwrap(), Pages::new(k * n).unwrap());
    let mut c = Pages::new(m * n).unwrap();
    let check = Check::prepare(recipe, &mut a, &mut b);
    let mut work = Workspace::new(unit, recipe.shape).unwrap();
    // SAFETY: `units` lists only what this CPU has.
    unsafe { multiply(unit, recipe.shape, (&a, &b, &mut c), &mut work) };
    (c, check)
}

/// Every element by definition, then `flips` seeded single-bit flips, each of which must be seen and spelt out.
fn holds_and_sees_flips<A, B, C>(unit: &'static Micro<A, B, C>, recipe: Recipe, flips: u64)
where
    A: Operand + Default,
    B: Operand + Default,
    C: Answer + Default + std::ops::Add<Output = C>,
{
    let Shape { m, n, .. } = recipe.shape;
    let (mut c, check) = product(unit, recipe);
    assert_eq!(check.verify(&c), Ok(()), "{} {recipe:?}", unit.name);
    if recipe.exponents == 0 {
        for (at, got) in c.iter().enumerate() {
            let expected = C::bits_of(recipe.reference(at / n, at % n), 1.0);
            assert_eq!(got.bits(), expected, "{} C[{}][{}]", unit.name, at / n, at % n);
        }
    }
    let mut stream = Stream::new(recipe.seed);
    for _ in 0..flips {
        let bytes = bytes_of(&mut c);
        let bit = stream.below(bytes.len() as u64 * 8) as usize;
        bytes[bit / 8] ^= 1 << (bit % 8);
        let wrong = check.verify(&c).expect_err(unit.name);
        let at = bit / 8 / size_of::<C>();
        assert!(
            wrong.rows == 1 && wrong.first.starts_with(&format!("C[{}][{}] ", at / n, at % n)),
            "{wrong:?}"
        );
        let flipped = 1u64 << (bit % (8 * size_of::<C>()));
        assert!(wrong.first.ends_with(&format!("flipped {flipped:#x}")), "{wrong:?}");
        bytes_of(&mut c)[bit / 8] ^= 1 << (bit % 8);
    }
    assert_eq!(check.verify(&c), Ok(()), "{} restored", unit.name);
    assert!(m > 0);
}

use super::super::pages::bytes_of;

/// Prime-ish edges: every kind of ragged tile, and depths that no group divides.
const SHAPES: [Shape; 4] = [
    Shape { m: 1, n: 1, k: 1 },
    Shape { m: 17, n: 53, k: 203 },
    Shape { m: 8, n: 48, k: 192 },
    Shape { m: 203, n: 97, k: 259 },
];

fn recipe(shape: Shape, limit: u32, unsigned: bool, exponents: u32, seed: u64) -> Recipe {
    Recipe { shape, limit_a: limit, limit_b: limit.min(127), unsigned, exponents, seed }
}

#[test]
fn every_unit_agrees_with_the_definition_at_every_edge() {
    for (seed, shape) in SHAPES.into_iter().enumerate() {
        for exponents in [0, 9] {
            let seed = seed as u64;
            units::f64_units()
                .iter()
                .for_each(|u| holds_and_sees_flips(u, recipe(shape, 1 << 20, false, exponents, seed), 3));
            units::f32_units()
                .iter()
                .for_each(|u| holds_and_sees_flips(u, recipe(shape, 127, false, exponents, seed), 3));
            units::bf16_units()
                .iter()
                .for_each(|u| holds_and_sees_flips(u, recipe(shape, 127, false, exponents, seed), 3));
        }
        units::int8_units()
            .iter()
            .for_each(|u| holds_and_sees_flips(u, recipe(shape, 255, true, 0, seed as u64), 3));
        units::int16_units()
            .iter()
            .for_each(|u| holds_and_sees_flips(u, recipe(shape, 32_000, false, 0, seed as u64), 3));
    }
}

#[test]
fn a_thousand_single_bit_flips_in_every_unit_are_all_found() {
    let shape = Shape { m: 64, n: 64, k: 64 };
    let r = |limit, unsigned, exponents| recipe(shape, limit, unsigned, exponents, 99);
    units::f64_units().iter().for_each(|u| holds_and_sees_flips(u, r(1 << 20, false, 5), 1000));
    units::f32_units().iter().for_each(|u| holds_and_sees_flips(u, r(127, false, 5), 1000));
    units::bf16_units().iter().for_each(|u| holds_and_sees_flips(u, r(127, false, 5), 1000));
    units::int8_units().iter().for_each(|u| holds_and_sees_flips(u, r(255, true, 0), 1000));
    units::int16_units().iter().for_each(|u| holds_and_sees_flips(u, r(1600, false, 0), 1000));
}

#[test]
fn many_wrong_elements_of_one_row_are_seen_too() {
    // Two errors of opposite sign, which an unweighted sum would miss.
    let unit = units::f64_units()[0];
    let (mut c, check) = product(unit, recipe(Shape { m: 4, n: 64, k: 16 }, 1000, false, 0, 5));
    c[64 + 3] += 1.0;
    c[64 + 40] -= 1.0;
    let wrong = check.verify(&c).unwrap_err();
    assert!(
        wrong.rows == 1 && wrong.first.contains("C[1][3]") && wrong.first.contains("C[1][40]"),
        "{wrong:?}"
    );
}

#[test]
fn a_sound_machine_passes_with_readings_of_every_family() {
    let rig = Rig::new(5, Duration::from_secs(3));
    let done = work(&CpuComputeParams::default(), &rig.bench());
    assert!(rig.findings().is_empty(), "{:?}", rig.findings());
    // A machine under other load may not finish the round; then it says so.
    assert!(matches!(done.outcome, TestOutcome::Pass | TestOutcome::Inconclusive), "{done:?}");
    assert!(
        rig.readings().iter().any(|r| r.reading.metric == "cpu.gemm.throughput" && r.reading.value > 0.0)
    );
}

/// Flips a bit in one unit of the thread's core, in every step.
struct Broken(AtomicU64);

impl Tap for Broken {
    fn produced(&self, unit: &str, bytes: &mut [u8]) {
        if unit == "crc32c" {
            let bit =
                Stream::new(self.0.fetch_add(1, Ordering::Relaxed)).below(bytes.len() as u64 * 8) as usize;
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn a_broken_unit_fails_the_test_and_is_named_with_its_core() {
    let rig = Rig::new(5, Duration::from_millis(500));
    let params = CpuComputeParams { families: vec![CpuFamily::Hash], min_rounds: 1 };
    let done = work(&params, &rig.tapped(&Broken(AtomicU64::new(0))));
    assert_eq!(done.outcome, TestOutcome::Fail, "{done:?}");
    let findings = rig.findings();
    assert!(!findings.is_empty() && findings.len() <= MAX_FINDINGS);
    let first = &findings[0];
    assert_eq!((first.code.as_str(), first.action), (CODE, Action::Replace));
    assert!(
        first.detail.contains("logical CPU") && first.detail.contains("crc32c") && first.device.is_some(),
        "{first:?}"
    );
}

#[test]
fn too_little_time_is_inconclusive_not_a_pass() {
    let rig = Rig::new(5, Duration::ZERO);
    let done = work(&CpuComputeParams::default(), &rig.bench());
    assert_eq!(done.outcome, TestOutcome::Inconclusive);
    assert!(done.detail.contains("0 of 1 rounds"), "{done:?}");
}
