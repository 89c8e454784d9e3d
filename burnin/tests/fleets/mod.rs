//! Seeded fleets with known answers, for the judge's tests and for `examples/fleet_table.rs`.

use whetstone_burnin::judge::{Better, Sample};

/// A small generator of its own, so that a seed means the same fleet for ever.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    /// SplitMix64.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In (0, 1).
    pub fn unit(&mut self) -> f64 {
        ((self.next() >> 12) as f64 + 0.5) / (1u64 << 52) as f64
    }

    pub fn below(&mut self, n: usize) -> usize {
        ((self.unit() * n as f64) as usize).min(n - 1)
    }

    /// Standard normal (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }
}

/// What healthy noise looks like. Widths are fractions of the value; "slow" is the bad side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Normal,
    /// Student t with 3 degrees of freedom.
    StudentT3,
    Laplace,
    /// Lognormal (sigma 0.5) with the long tail on the bad side, like a latency.
    SlowTail,
    /// Lognormal (sigma 1) with the long tail on the bad side: as bad as healthy noise gets.
    LongSlowTail,
    /// Lognormal (sigma 0.5) with the long tail on the good side.
    FastTail,
    /// Blades differ by 1 %, devices in a blade by 0.3 %.
    BladeEffects,
    /// Blade effects with t3 tails.
    HeavyBladeEffects,
    /// From the first blade to the last the value falls by 3 % (a temperature gradient along the row).
    Gradient,
    /// 30 % of the devices are of a kind 2.5 % slower.
    TwoKindsOfDevice,
    /// 30 % of the blades are of a kind 2.5 % slower.
    TwoKindsOfBlade,
    /// Rounded to steps of one standard deviation.
    Rounded,
    /// Rounded so coarsely that most values are equal (MAD = 0).
    CoarselyRounded,
}

impl Shape {
    pub const ALL: [Shape; 13] = [
        Shape::Normal,
        Shape::StudentT3,
        Shape::Laplace,
        Shape::SlowTail,
        Shape::LongSlowTail,
        Shape::FastTail,
        Shape::BladeEffects,
        Shape::HeavyBladeEffects,
        Shape::Gradient,
        Shape::TwoKindsOfDevice,
        Shape::TwoKindsOfBlade,
        Shape::Rounded,
        Shape::CoarselyRounded,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Shape::Normal => "normal",
            Shape::StudentT3 => "Student t3",
            Shape::Laplace => "Laplace",
            Shape::SlowTail => "lognormal 0.5, slow tail",
            Shape::LongSlowTail => "lognormal 1, slow tail",
            Shape::FastTail => "lognormal 0.5, fast tail",
            Shape::BladeEffects => "blade effects",
            Shape::HeavyBladeEffects => "blade effects, t3",
            Shape::Gradient => "gradient along the row",
            Shape::TwoKindsOfDevice => "two kinds of device",
            Shape::TwoKindsOfBlade => "two kinds of blade",
            Shape::Rounded => "rounded",
            Shape::CoarselyRounded => "coarsely rounded",
        }
    }
}

/// A fleet to be made.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub shape: Shape,
    pub blades: usize,
    pub per_blade: usize,
    pub metrics: usize,
    /// Width of the noise as a fraction of the value.
    pub sigma: f64,
    /// Share of the devices that are slow in one metric of theirs (at least one if above 0).
    pub gray_share: f64,
    /// By how much, as a fraction.
    pub gray_drop: f64,
    /// All devices of one blade are slow by this in one metric.
    pub slow_blade: f64,
    pub seed: u64,
}

impl Plan {
    pub fn healthy(shape: Shape, blades: usize, metrics: usize, seed: u64) -> Plan {
        Plan {
            shape,
            blades,
            per_blade: 8,
            metrics,
            sigma: 0.005,
            gray_share: 0.0,
            gray_drop: 0.0,
            slow_blade: 0.0,
            seed,
        }
    }
}

/// Samples and the truth.
pub struct Fleet {
    pub samples: Vec<Sample>,
    /// (blade, device) of the planted ones.
    pub gray: std::collections::BTreeSet<(String, String)>,
    pub devices: usize,
}

pub fn make(plan: &Plan) -> Fleet {
    let mut dice = Dice::new(plan.seed);
    let n = plan.blades * plan.per_blade;
    // Faults first, so that the healthy noise of a seed is the same with and without them.
    let mut faults = vec![None; n];
    if plan.gray_share > 0.0 {
        let mut left = ((plan.gray_share * n as f64).round() as usize).max(1);
        while left > 0 {
            let at = dice.below(n);
            if faults[at].is_none() {
                faults[at] = Some((dice.below(plan.metrics), plan.gray_drop));
                left -= 1;
            }
        }
    }
    if plan.slow_blade > 0.0 {
        let (blade, metric) = (dice.below(plan.blades), dice.below(plan.metrics));
        faults[blade * plan.per_blade..(blade + 1) * plan.per_blade].fill(Some((metric, plan.slow_blade)));
    }
    let mut fleet = Fleet { samples: Vec::new(), gray: Default::default(), devices: n };
    for metric in 0..plan.metrics {
        // Odd metrics are latencies.
        let better = if metric % 2 == 0 { Better::Higher } else { Better::Lower };
        let base = [812.0, 14.2, 3210.0, 0.0042, 52.5][metric % 5];
        for blade in 0..plan.blades {
            let of_blade = blade_noise(&mut dice, plan, blade);
            for slot in 0..plan.per_blade {
                let noise = device_noise(&mut dice, plan) + of_blade;
                let at = blade * plan.per_blade + slot;
                let name = (format!("b-{blade:03}"), format!("gpu{slot}"));
                let mut worse = noise;
                if let Some((_, drop)) = faults[at].filter(|(m, _)| *m == metric) {
                    worse += drop;
                    fleet.gray.insert(name.clone());
                }
                let factor = match better {
                    Better::Higher => 1.0 - worse,
                    Better::Lower => 1.0 + worse,
                };
                let step = match plan.shape {
                    Shape::Rounded => plan.sigma,
                    Shape::CoarselyRounded => 3.2 * plan.sigma,
                    _ => 0.0,
                };
                let factor = if step > 0.0 { (factor / step).round() * step } else { factor };
                fleet.samples.push(Sample {
                    blade: name.0,
                    device: name.1,
                    test: format!("test{}", metric / 2),
                    metric: format!("metric{metric}"),
                    value: base * factor,
                    unit: if better == Better::Higher { "TFLOP/s" } else { "us" }.into(),
                    better,
                    sku: Some("h100".into()),
                    driver: None,
                    firmware: None,
                    suite: None,
                });
            }
        }
    }
    fleet
}

fn t3(dice: &mut Dice) -> f64 {
    let chi = (0..3).map(|_| dice.normal().powi(2)).sum::<f64>() / 3.0;
    dice.normal() / chi.sqrt()
}

/// How much worse a whole blade is.
fn blade_noise(dice: &mut Dice, plan: &Plan, blade: usize) -> f64 {
    match plan.shape {
        Shape::BladeEffects => 2.0 * plan.sigma * dice.normal(),
        Shape::HeavyBladeEffects => 1.5 * plan.sigma * t3(dice),
        Shape::Gradient => 6.0 * plan.sigma * blade as f64 / (plan.blades - 1).max(1) as f64,
        Shape::TwoKindsOfBlade if dice.unit() < 0.3 => 5.0 * plan.sigma,
        _ => 0.0,
    }
}

/// How much worse a device is.
fn device_noise(dice: &mut Dice, plan: &Plan) -> f64 {
    let s = plan.sigma;
    match plan.shape {
        Shape::Normal | Shape::Rounded | Shape::CoarselyRounded | Shape::Gradient => s * dice.normal(),
        Shape::StudentT3 => s * t3(dice),
        Shape::Laplace => {
            let side = if dice.unit() < 0.5 { -1.0 } else { 1.0 };
            -side * s * dice.unit().ln() / std::f64::consts::SQRT_2
        }
        // About the stated width around the middle; the tail is what it is.
        Shape::SlowTail => 2.0 * s * ((0.5 * dice.normal()).exp() - 1.0),
        Shape::LongSlowTail => s * (dice.normal().exp() - 1.0),
        Shape::FastTail => -2.0 * s * ((0.5 * dice.normal()).exp() - 1.0),
        Shape::BladeEffects | Shape::HeavyBladeEffects => 0.6 * s * dice.normal(),
        Shape::TwoKindsOfDevice => s * dice.normal() + if dice.unit() < 0.3 { 5.0 * s } else { 0.0 },
        Shape::TwoKindsOfBlade => 0.8 * s * dice.normal(),
    }
}
