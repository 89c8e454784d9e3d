//! Measures the host tests' inner loops beside their peers: `tests/bench/host.sh` runs it and its peers in turns.
//!
//! `host_bench gemm fp64|fp32 N THREADS ROUNDS` prints GFLOP/s of each round, every element verified in the time.

#![allow(unsafe_code, clippy::expect_used)]

use std::time::Instant;

use whetstone_device::host::compute::gemm::block::{Micro, Shape};
use whetstone_device::host::compute::gemm::oracle::{Answer, Operand, Recipe};
use whetstone_device::host::compute::gemm::product::Product;
use whetstone_device::host::compute::gemm::units;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<usize>().unwrap_or(0);
    match words[..] {
        ["gemm", format, n, threads, rounds] => gemm(format, number(n), number(threads), number(rounds)),
        _ => eprintln!("usage: host_bench gemm fp64|fp32 N THREADS ROUNDS"),
    }
}

fn gemm(format: &str, n: usize, threads: usize, rounds: usize) {
    let unit = |i: usize| i.min(std::env::var("UNIT").ok().and_then(|u| u.parse().ok()).unwrap_or(0));
    match format {
        "fp64" => product(units::f64_units()[unit(9)], n, threads, rounds, (1 << 20, 1 << 20)),
        "fp32" => product(units::f32_units()[unit(9)], n, threads, rounds, (127, 127)),
        "int8" => product(units::int8_units()[unit(9)], n, threads, rounds, (127, 127)),
        "bf16" => product(units::bf16_units()[unit(9)], n, threads, rounds, (64, 64)),
        _ => {}
    }
}

fn product<A, B, C>(
    unit: &'static Micro<A, B, C>,
    n: usize,
    threads: usize,
    rounds: usize,
    (limit_a, limit_b): (u32, u32),
) where
    A: Operand + Default,
    B: Operand + Default,
    C: Answer + Default + std::ops::Add<Output = C>,
{
    let threads = threads.max(1);
    let shape = Shape { m: n / threads, n, k: n };
    let recipe = Recipe { shape, limit_a, limit_b, unsigned: true, exponents: 3, seed: 7 };
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
