//! Measures the host tests' inner loops beside their peers: `tests/bench/host.sh` runs it and its peers in turns.
//!
//! - `host_bench gemm fp64|fp32|bf16|int8 N THREADS ROUNDS`: GFLOP/s of each round, every element verified in the time
//! - `host_bench dram MIB THREADS ROUNDS`: GB/s of each round: pattern written and read back (every byte compared), the
//!   bytes compared alone, and a copy; `MIB` is for each thread

#![allow(unsafe_code, clippy::expect_used)]

use std::time::Instant;

use whetstone_device::host::compute::gemm::block::{Micro, Shape};
use whetstone_device::host::compute::gemm::oracle::{Answer, Operand, Recipe};
use whetstone_device::host::compute::gemm::product::Product;
use whetstone_device::host::compute::gemm::units;
use whetstone_device::host::dram::lines::{self, Pattern};
use whetstone_device::host::pages::Pages;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<usize>().unwrap_or(0);
    match words[..] {
        ["gemm", format, n, threads, rounds] => gemm(format, number(n), number(threads), number(rounds)),
        ["dram", mib, threads, rounds] => dram(number(mib), number(threads).max(1), number(rounds)),
        _ => {
            eprintln!("usage: host_bench gemm fp64|fp32|bf16|int8 N THREADS ROUNDS | dram MIB THREADS ROUNDS")
        }
    }
}

fn gemm(format: &str, n: usize, threads: usize, rounds: usize) {
    // Limits that stay exact at any depth up to 1,024 (fp32, bf16: 24 bits), 2,048 (fp64: 51 bits) and more (int8).
    match format {
        "fp64" => product(units::f64_units().first().copied(), n, threads, rounds, (1 << 20, 1 << 19)),
        "fp32" => product(units::f32_units().first().copied(), n, threads, rounds, (127, 60)),
        "bf16" => product(units::bf16_units().first().copied(), n, threads, rounds, (127, 60)),
        "int8" => product(units::int8_units().first().copied(), n, threads, rounds, (255, 127)),
        _ => eprintln!("unknown format {format}"),
    }
}

fn product<A, B, C>(
    unit: Option<&'static Micro<A, B, C>>,
    n: usize,
    threads: usize,
    rounds: usize,
    (limit_a, limit_b): (u32, u32),
) where
    A: Operand + Default,
    B: Operand + Default,
    C: Answer + Default + std::ops::Add<Output = C>,
{
    let Some(unit) = unit else {
        eprintln!("this CPU has no unit for it");
        return;
    };
    let threads = threads.max(1);
    let shape = Shape { m: n / threads, n, k: n };
    let recipe = Recipe {
        shape,
        limit_a,
        limit_b,
        unsigned: size_of::<B>() == 1,
        exponents: if size_of::<B>() == 1 { 0 } else { 3 },
        seed: 7,
    };
    let mut parts: Vec<_> = (0..threads)
        .map(|_| {
            // SAFETY: `units` lists only what this CPU has.
            let mut part = unsafe { Product::new(unit, shape) }.expect("memory");
            part.prepare(recipe);
            part
        })
        .collect();
    for _ in 0..rounds {
        let started = Instant::now();
        let mut multiply = 0.0f64;
        std::thread::scope(|scope| {
            let work = |part: &mut Product<A, B, C>| {
                let took = part.compute().as_secs_f64();
                assert_eq!(part.verify(), Ok(()));
                took
            };
            let handles: Vec<_> = parts.iter_mut().map(|part| scope.spawn(move || work(part))).collect();
            for handle in handles {
                multiply = multiply.max(handle.join().expect("worker"));
            }
        });
        let operations = shape.operations() * threads as f64;
        let (all, bare) = (started.elapsed().as_secs_f64(), multiply);
        println!(
            "{} n={n} threads={threads} verified={:.2} bare={:.2} GFLOP/s",
            unit.name,
            operations / all / 1e9,
            operations / bare / 1e9
        );
    }
}

/// Threads in step: each phase begins when all have ended the one before, as STREAM does it.
fn dram(mib: usize, threads: usize, rounds: usize) {
    let words = mib << 17;
    let mut areas: Vec<Pages<u64>> = (0..threads).map(|_| Pages::populated(words).expect("memory")).collect();
    let phase = |areas: &mut [Pages<u64>], work: &(dyn Fn(&mut [u64]) + Sync)| {
        let started = Instant::now();
        std::thread::scope(|scope| areas.iter_mut().for_each(|area| drop(scope.spawn(move || work(area)))));
        started.elapsed().as_secs_f64()
    };
    let bytes = (words * 8 * threads) as f64;
    for round in 0..rounds as u64 {
        // The patterns of the test in turn.
        let pattern = [Pattern::Random, Pattern::Address, Pattern::WalkingOnes][round as usize % 3];
        let write = phase(&mut areas, &|area| lines::write(pattern, round, area, 0, true));
        let read = phase(&mut areas, &|area| {
            assert_eq!(lines::first_wrong_block(pattern, round, area, 0, 0), None);
        });
        let copy = phase(&mut areas, &|area| {
            let (from, to) = area.split_at_mut(words / 2);
            lines::copy(from, to);
        });
        let (both, each) = (2.0 * bytes / (write + read) / 1e9, bytes / (write + read) / 1e9);
        println!("dram pattern={both:.3} verified={each:.3} copy={:.3} GB/s", bytes / copy / 1e9);
    }
}
