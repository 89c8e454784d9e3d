//! How fast a simulated GPU works, and how warm it gets.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use crate::fault::{Direction, Fault};
use crate::format::Format;
use crate::seed::Seed;
use crate::sim::Gpu;

/// Real time for which one piece of work counts as load: bridges the gaps between launches of a busy machine.
const LINGER_NS: u64 = 500_000_000;
/// Part of the power limit that a full load draws; a healthy board is not power-capped in the simulation.
const LOAD_POWER: f64 = 0.94;
/// Share of the NVLinks' raw rate that a large copy sees.
const NVLINK_EFFICIENCY: f64 = 0.86;
/// Standard deviation of one measurement around the part's own rate.
const MEASUREMENT_SIGMA: f64 = 0.001;
/// A thermally slowed GPU settles so far above its slowdown temperature, degrees C.
const THROTTLE_C: f64 = 2.0;
/// Clocks and rates of a thermally slowed GPU, as a part of normal.
const THROTTLED: f64 = 0.6;

/// A piece of work, as the simulated driver did it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Work {
    /// What it would have taken on the SKU.
    pub virtual_ns: u64,
    /// How hard it heats, 0 to 1: matrix products 1, memory tests 0.7, copies 0.35.
    pub intensity: f64,
    pub flops: u64,
    pub hbm_bytes: u64,
    /// Host to device, device to host.
    pub pcie_tx_bytes: u64,
    pub pcie_rx_bytes: u64,
    pub nvlink_bytes: u64,
}

/// Start and end on the device's own clock, ns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub start_ns: u64,
    pub end_ns: u64,
}

/// How the GPU is at this moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Health {
    pub loaded: bool,
    /// Real seconds under load so far.
    pub loaded_s: f64,
    pub celsius: f64,
    pub memory_celsius: f64,
    pub watts: f64,
    /// Enforced power limit.
    pub limit_w: f64,
    pub sm_clock_mhz: f64,
    pub thermal_slowdown: bool,
    pub power_capped: bool,
    /// Millijoule since zero.
    pub energy_mj: u64,
}

impl Gpu<'_> {
    /// Books work: advances the device's clock and counts it as load. Returns where on that clock it lay.
    pub fn work(&self, work: Work) -> Span {
        self.load(work.intensity);
        let state = self.state();
        state.launches.fetch_add(1, Relaxed);
        state.flops.fetch_add(work.flops, Relaxed);
        state.hbm_bytes.fetch_add(work.hbm_bytes, Relaxed);
        state.pcie_tx_bytes.fetch_add(work.pcie_tx_bytes, Relaxed);
        state.pcie_rx_bytes.fetch_add(work.pcie_rx_bytes, Relaxed);
        state.nvlink_bytes.fetch_add(work.nvlink_bytes, Relaxed);
        let start_ns = state.virtual_ns.fetch_add(work.virtual_ns, AcqRel);
        Span { start_ns, end_ns: start_ns + work.virtual_ns }
    }

    /// Under load from now on for a moment. For work that takes long on the host: call it on the way too.
    pub fn load(&self, intensity: f64) {
        self.health();
        let (state, now) = (self.state(), self.sim.now_ns());
        let until = state.load_until_ns.fetch_max(now + LINGER_NS, AcqRel);
        state.loaded_ns.fetch_add((now + LINGER_NS).saturating_sub(until.max(now)), Relaxed);
        state.intensity.store((intensity.clamp(0.0, 1.0) * 1000.0) as u64, Relaxed);
    }

    /// The device's clock, ns (`%globaltimer`, events).
    pub fn virtual_ns(&self) -> u64 {
        self.state().virtual_ns.load(Acquire)
    }

    /// Real time under load so far, ns.
    pub fn loaded_ns(&self) -> u64 {
        let (state, now) = (self.state(), self.sim.now_ns());
        state.loaded_ns.load(Relaxed).saturating_sub(state.load_until_ns.load(Acquire).saturating_sub(now))
    }

    /// Brings temperature and energy up to now and says how the GPU is.
    pub fn health(&self) -> Health {
        let (state, sku, variation) = (self.state(), self.sku(), &self.scenario.variation);
        let now = self.sim.now_ns();
        let until = state.load_until_ns.load(Acquire);
        let loaded = now < until;
        let loaded_s = self.loaded_ns() as f64 / 1e9;
        let intensity = if loaded { state.intensity.load(Relaxed) as f64 / 1000.0 } else { 0.0 };
        let thermal_slowdown = loaded
            && self
                .faults()
                .iter()
                .any(|f| matches!(f, Fault::ThermalThrottle { after_s } if loaded_s >= *after_s));
        let limit_w = self.limit_w();
        let wanted = (sku.idle_w + (sku.power_limit_w * LOAD_POWER - sku.idle_w) * intensity)
            * variation.power
            * self.noise();
        let wanted = if thermal_slowdown { wanted * THROTTLED } else { wanted };
        let power_capped = loaded && wanted > limit_w;
        let watts = wanted.min(limit_w);

        let hotter: f64 =
            self.faults().iter().map(|f| if let Fault::Hot { degrees } = f { *degrees } else { 0.0 }).sum();
        let target = if thermal_slowdown {
            sku.slowdown_c + THROTTLE_C - sku.idle_c
        } else {
            (sku.load_c - sku.idle_c + hotter) * intensity
        };
        let before = state.heat_at_ns.load(Acquire);
        let mut heat = state.heat_milli.load(Relaxed) as f64 / 1000.0;
        // One of several callers moves the clock on; the others see the temperature a moment old.
        if now > before && state.heat_at_ns.compare_exchange(before, now, AcqRel, Acquire).is_ok() {
            let dt_s = (now - before) as f64 / 1e9;
            heat = target + (heat - target) * (-dt_s / self.sim.blade().thermal_s.max(0.01)).exp();
            state.heat_milli.store((heat * 1000.0) as i64, Release);
            state.energy_uj.fetch_add((watts * dt_s * 1e6) as u64, Relaxed);
        }
        let celsius = sku.idle_c + variation.celsius + heat;
        let sm_clock_mhz = match (loaded, thermal_slowdown, power_capped) {
            (false, ..) => 345.0,
            (true, true, _) => f64::from(sku.sm_clock_mhz) * THROTTLED,
            (true, false, true) => f64::from(sku.sm_clock_mhz) * self.cap_factor(),
            (true, false, false) => f64::from(sku.sm_clock_mhz),
        };
        Health {
            loaded,
            loaded_s,
            celsius,
            memory_celsius: celsius + 7.0 * intensity.max(0.2),
            watts,
            limit_w,
            sm_clock_mhz,
            thermal_slowdown,
            power_capped,
            energy_mj: state.energy_uj.load(Relaxed) / 1000,
        }
    }

    /// Enforced power limit, W.
    pub fn limit_w(&self) -> f64 {
        let caps = self
            .faults()
            .iter()
            .filter_map(|f| if let Fault::PowerCap { watts } = f { Some(*watts) } else { None });
        caps.fold(self.sku().power_limit_w, f64::min)
    }

    /// Speed under a power cap: dynamic power goes with about the cube of the clock.
    fn cap_factor(&self) -> f64 {
        (self.limit_w() / (self.sku().power_limit_w * LOAD_POWER)).clamp(0.05, 1.0).cbrt()
    }

    /// Sustained arithmetic rate in operations per second, `None` if the chip lacks the format.
    pub fn flops_per_s(&self, format: Format) -> Option<f64> {
        let mut rate = self.sku().tflops(format)?
            * 1e12
            * self.scenario.variation.compute
            * self.cap_factor()
            * self.noise();
        for fault in self.faults() {
            if let Fault::SlowGpu { percent, format: only } = fault
                && only.is_none_or(|f| f == format)
            {
                rate *= 1.0 - percent / 100.0;
            }
        }
        Some(if self.health().thermal_slowdown { rate * THROTTLED } else { rate })
    }

    /// Factor (around 1) on the time that SM `sm` takes.
    pub fn sm_time(&self, sm: u32) -> f64 {
        let own = 1.0
            + 0.002 * Seed::of(self.sim.blade().seed, &format!("sm {} {sm}", self.scenario.uuid)).normal();
        let slow = self.faults().iter().filter_map(|f| match f {
            Fault::SlowSm { sm: which, percent } if *which == sm => Some(1.0 + percent / 100.0),
            _ => None,
        });
        own.max(0.5) * slow.product::<f64>()
    }

    /// HBM traffic (read plus write), bytes per second.
    pub fn hbm_bytes_per_s(&self) -> f64 {
        let slow = self
            .faults()
            .iter()
            .filter_map(|f| if let Fault::SlowHbm { percent } = f { Some(*percent) } else { None });
        let slow: f64 = slow.map(|percent| 1.0 - percent / 100.0).product();
        self.sku().hbm_gbps * 1e9 * self.scenario.variation.hbm * slow * self.noise()
    }

    /// Generation and width that PCIe has trained to.
    pub fn pcie_now(&self) -> (u32, u32) {
        let mut now = (self.sku().pcie_gen, self.sku().pcie_width);
        for fault in self.faults() {
            match fault {
                Fault::PcieGen { now: generation } => now.0 = *generation,
                Fault::PcieWidth { now: width } => now.1 = *width,
                _ => {}
            }
        }
        now
    }

    /// Host copies, bytes per second in one direction.
    pub fn pcie_bytes_per_s(&self) -> f64 {
        let (generation, width) = self.pcie_now();
        let sku = self.sku();
        let part = f64::from(width) / f64::from(sku.pcie_width)
            * 2_f64.powi(generation as i32 - sku.pcie_gen as i32);
        sku.pcie_gbps * 1e9 * part * self.scenario.variation.pcie * self.noise()
    }

    /// NVLinks that are up.
    pub fn links_up(&self) -> u32 {
        (0..self.sku().nvlinks).filter(|link| self.link_up(*link)).count() as u32
    }

    pub fn link_up(&self, link: u32) -> bool {
        link < self.sku().nvlinks
            && !self.faults().iter().any(|f| matches!(f, Fault::NvlinkDown { link: l } if *l == link))
    }

    /// Copies between this GPU and `peer`, bytes per second in one direction; over PCIe where there is no NVLink.
    pub fn peer_bytes_per_s(&self, peer: Gpu<'_>) -> f64 {
        let links = self.links_up().min(peer.links_up());
        if links == 0 {
            return self.pcie_bytes_per_s().min(peer.pcie_bytes_per_s()) * 0.9;
        }
        let slow = |from: &Gpu<'_>, to: &Gpu<'_>| -> f64 {
            let faults = from.faults().iter().filter_map(|f| match f {
                Fault::SlowLink { peer, percent } if *peer == to.scenario.slot => Some(1.0 - percent / 100.0),
                _ => None,
            });
            faults.product()
        };
        let parts = self.scenario.variation.nvlink.min(peer.scenario.variation.nvlink);
        let rate = f64::from(links) * self.sku().nvlink_gbps * 1e9 * NVLINK_EFFICIENCY;
        rate * parts * slow(self, &peer) * slow(&peer, self) * self.noise()
    }

    /// The number (from 1) of this copy in its direction, and the planted bit flip that it must suffer.
    pub fn count_copy(&self, direction: Direction) -> (u64, Option<u32>) {
        let place = direction as usize;
        let number = 1 + self.state().copies[place].fetch_add(1, AcqRel);
        let flip = self.faults().iter().find_map(|f| match f {
            Fault::CopyFlip { direction: d, bit, every_n }
                if *d == direction && number.is_multiple_of((*every_n).max(1)) =>
            {
                Some(*bit)
            }
            _ => None,
        });
        (number, flip)
    }

    /// Correctable HBM errors so far: they come with load.
    pub fn ecc_correctable(&self) -> u64 {
        let per_s: f64 =
            self.faults().iter().map(|f| if let Fault::EccStorm { per_s } = f { *per_s } else { 0.0 }).sum();
        if per_s == 0.0 { 0 } else { (per_s * self.health().loaded_s) as u64 }
    }

    /// Uncorrectable HBM errors so far.
    pub fn ecc_uncorrectable(&self) -> u64 {
        let planted: u64 = self
            .faults()
            .iter()
            .map(|f| match f {
                Fault::EccUncorrectable { count, at_s } if self.sim.reached(*at_s) => *count,
                _ => 0,
            })
            .sum();
        planted + self.state().ecc_uncorrectable.load(Relaxed)
    }

    /// CRC errors so far on an NVLink.
    pub fn nvlink_errors(&self, link: u32) -> u64 {
        let rates = self.faults().iter().filter_map(|f| match f {
            Fault::NvlinkErrors { link: l, per_s } if *l == link => Some(*per_s),
            _ => None,
        });
        let per_s: f64 = rates.sum();
        if per_s == 0.0 { 0 } else { (per_s * self.health().loaded_s) as u64 }
    }

    /// PCIe replays so far.
    pub fn pcie_replays(&self) -> u64 {
        let per_s: f64 = self
            .faults()
            .iter()
            .map(|f| if let Fault::PcieReplays { per_s } = f { *per_s } else { 0.0 })
            .sum();
        if per_s == 0.0 { 0 } else { (per_s * self.health().loaded_s) as u64 }
    }

    /// A factor around 1 that differs from one measurement to the next.
    fn noise(&self) -> f64 {
        let count = self.state().launches.load(Relaxed);
        1.0 + MEASUREMENT_SIGMA * Seed::of(self.sim.blade().seed ^ count, &self.scenario.uuid).normal()
    }
}
