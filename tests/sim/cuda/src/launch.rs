//! Kernels and copies: run now, booked in virtual time.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use whetstone_scenario::{Direction, Fault, Format, Gpu, Work};

use crate::driver::{Device, Driver, Function, Stream};
use crate::error::{Error, Result};
use crate::handles::lock;
use crate::runtime::{self, Arguments, Broken, Dim, FORMATS, Launch};
use crate::timeline::Engine;

/// Virtual time of a launch beside its work, ns. On hardware it is some 2,500, beside milliseconds of work; simulated
/// launches are scaled down to microseconds, in which that would drown what is measured.
const LAUNCH_NS: f64 = 1.0;
/// Of a copy between host and GPU, and between GPUs: about what small copies take.
const HOST_COPY_NS: f64 = 1_200.0;
const PEER_COPY_NS: f64 = 800.0;
/// Threads per block and dynamic shared memory that every device here takes.
pub const MAX_THREADS: u64 = 1024;
pub const MAX_SHARED: u32 = 48 * 1024;

/// CUDA-core rate of a format as a part of another format's rate: fp64 beside the fp64 tensor core has half its rate;
/// halves are computed in fp32; dp4a does 4 multiply-adds per lane.
fn fma_share(format: Format) -> (Format, f64) {
    match format {
        Format::F64 => (Format::F64, 0.5),
        Format::S8 => (Format::F32, 4.0),
        _ => (Format::F32, 1.0),
    }
}

/// Operations per ns of one SM, by format: tensor cores, CUDA cores.
fn rates(gpu: Gpu<'_>) -> ([f64; FORMATS], [f64; FORMATS]) {
    let per_sm = 1e9 * f64::from(gpu.sku().sms);
    let plain = |format| gpu.sku().tflops(format).map_or(1e12, |t| t * 1e12);
    let now = |format: Format| gpu.flops_per_s(format).unwrap_or(plain(format));
    let (mut mma, mut fma) = ([1.0; FORMATS], [1.0; FORMATS]);
    for (i, format) in Format::ALL.iter().enumerate() {
        mma[i] = now(*format) / per_sm;
        let (base, share) = fma_share(*format);
        // How this GPU does now in this format, against the SKU: a planted slowness shows on both paths.
        fma[i] = plain(base) * share * (now(*format) / plain(*format)) / per_sm;
    }
    (mma, fma)
}

/// `cuLaunchKernel`.
pub fn kernel(
    driver: &Driver,
    function: &Function,
    stream: &Stream,
    grid: Dim,
    block: Dim,
    shared: u32,
    arguments: Arguments,
) -> Result<()> {
    let device = driver.device(function.device)?;
    let gpu = driver.gpu(function.device)?;
    if stream.device != function.device {
        return Err(Error::INVALID_HANDLE);
    }
    if grid.count() == 0 || block.count() == 0 || grid.count() > 1 << 31 || shared > MAX_SHARED {
        return Err(Error::INVALID_VALUE);
    }
    if block.count() > u64::from(max_threads(&function.name)) {
        return Err(Error::LAUNCH_OUT_OF_RESOURCES);
    }
    planted_error(driver, device, gpu)?;

    let _busy = lock(&device.busy);
    let intensity = if Format::of_kernel(&function.name).is_some() { 1.0 } else { 0.7 };
    gpu.load(intensity);
    let sms = gpu.sku().sms.max(1);
    let speed = device.sm_speed.get_or_init(|| (0..sms).map(|sm| 1.0 / gpu.sm_time(sm)).collect());
    let faults = sm_faults(device, gpu, &function.name);
    let engines = [(device.index, Engine::Compute)];
    let start = driver.timeline.earliest(&engines, stream.done_ps.load(Acquire));
    let (mma_rate, fma_rate) = rates(gpu);
    let hbm_per_ns = gpu.hbm_bytes_per_s() / 1e9;
    let capability = gpu.sku().compute_capability;
    let launch = Launch {
        grid,
        block,
        sm_count: sms,
        fault_count: faults.len() as u32,
        faults: faults.as_ptr(),
        start_ns: start / 1000,
        tick: tick(device.launches.load(Acquire)),
        mma_rate,
        fma_rate,
        byte_rate: hbm_per_ns / f64::from(sms),
        sm_speed: speed.as_ptr(),
        significand: std::array::from_fn(|i| Format::ALL[i].accumulator_bits(capability)),
    };
    let total =
        runtime::run(function.kernel, arguments, &launch, &|| gpu.load(intensity)).map_err(|broken| {
            match broken {
                Broken::Kernel => device.fail(Error::LAUNCH_FAILED),
                Broken::NoMemory => Error::OUT_OF_MEMORY,
            }
        })?;
    driver.apply_bad_cells(device, true);

    let slowest = total.sm_ns.iter().copied().fold(0.0, f64::max);
    let ns = LAUNCH_NS + slowest.max(total.bytes as f64 / hbm_per_ns);
    let work = Work { intensity, flops: total.ops, hbm_bytes: total.bytes, ..Work::default() };
    book(driver, gpu, stream, &engines, start, ns, work);
    Ok(())
}

/// Where the timer's tick falls in the `number`-th launch. A simulated tile may take ten ns of a timer that counts whole
/// ones; steps of the golden ratio make the mean over launches right, and all SMs of a launch are cut alike.
fn tick(number: u64) -> f64 {
    (number as f64 * 0.618_033_988_749_895).fract()
}

/// Threads per block that a kernel was compiled for (`__launch_bounds__`).
pub fn max_threads(kernel: &str) -> u32 {
    if kernel.starts_with("mem_") { MAX_THREADS as u32 } else { 128 }
}

/// Counts the launch; the planted one and all later calls fail.
fn planted_error(driver: &Driver, device: &Device, gpu: Gpu<'_>) -> Result<()> {
    let number = 1 + device.launches.fetch_add(1, AcqRel);
    for fault in gpu.faults() {
        if let Fault::LaunchError { code, nth } = fault
            && *nth == number
        {
            if *code == Error::ECC_UNCORRECTABLE.0 {
                // As the real driver: counted, and said in the kernel log.
                gpu.state().ecc_uncorrectable.fetch_add(1, Relaxed);
                driver.sim.raise_xid(gpu, 94, "");
            }
            return Err(device.fail(Error(*code)));
        }
    }
    Ok(())
}

/// The planted wrong SMs, as far as they concern this kernel. Always the same thread and accumulator of a tile: a
/// broken circuit stays where it is.
fn sm_faults(device: &Device, gpu: Gpu<'_>, kernel: &str) -> Vec<runtime::Fault> {
    let Some(of_kernel) = Format::of_kernel(kernel) else { return Vec::new() };
    let faults = gpu.faults().iter().zip(&device.tiles).filter_map(|(fault, tiles)| match fault {
        Fault::SmFlip { sm, bit, format, every_n } if format.is_none_or(|f| f == of_kernel) => {
            Some(runtime::Fault {
                sm: *sm,
                thread: (sm * 29 + 17) % 128,
                element: bit * 5 + sm,
                bit: *bit,
                period: (*every_n).max(1),
                tiles,
            })
        }
        _ => None,
    });
    faults.collect()
}

/// Enters work that took `ns` from `start` (ps) on into virtual time and the shared state.
fn book(
    driver: &Driver,
    gpu: Gpu<'_>,
    stream: &Stream,
    engines: &[(usize, Engine)],
    start: u64,
    ns: f64,
    work: Work,
) {
    let end = start + (ns * 1e3) as u64;
    driver.timeline.occupy(engines, end);
    stream.done_ps.fetch_max(end, AcqRel);
    // The device's own clock shows the end of all work so far.
    gpu.work(Work { virtual_ns: (end / 1000).saturating_sub(gpu.virtual_ns()), ..work });
}

/// Where bytes go.
#[derive(Debug, Clone, Copy)]
pub enum Place {
    Host(*mut u8),
    Device(u64),
}

/// Copies `bytes` within `stream`'s order, with what the blade does to them on the way.
pub fn copy(driver: &Driver, stream: &Stream, to: Place, from: Place, bytes: u64) -> Result<()> {
    driver.device(stream.device)?;
    if bytes == 0 {
        return Ok(());
    }
    let find = |place| match place {
        Place::Host(pointer) => {
            if pointer.is_null() {
                Err(Error::INVALID_VALUE)
            } else {
                Ok((None, pointer))
            }
        }
        Place::Device(address) => {
            let owner = driver.owner(address).ok_or(Error::INVALID_VALUE)?;
            let device = driver.device(owner.index)?;
            lock(device.memory()?).check(address, bytes)?;
            Ok((Some(device), std::ptr::with_exposed_provenance_mut::<u8>(address as usize)))
        }
    };
    let ((to_device, to), (from_device, from)) = (find(to)?, find(from)?);
    let length = usize::try_from(bytes).map_err(|_| Error::INVALID_VALUE)?;
    // One lock at a time, by number: two copies in opposite directions must not wait for each other.
    let mut devices: Vec<&Device> = [from_device, to_device].into_iter().flatten().collect();
    devices.sort_by_key(|d| d.index);
    devices.dedup_by_key(|d| d.index);
    let _busy: Vec<_> = devices.iter().map(|d| lock(&d.busy)).collect();
    // SAFETY: device ranges were checked against their allocations; host ranges are the caller's promise, as with
    // the real driver. `copy` allows overlap.
    unsafe { std::ptr::copy(from, to, length) };

    let work = Work { intensity: 0.35, ..Work::default() };
    let (gpu, engines, ns, flip, work) = match (from_device, to_device) {
        (None, None) => return Ok(()),
        (None, Some(device)) => {
            let gpu = driver.gpu(device.index)?;
            let ns = HOST_COPY_NS + bytes as f64 / gpu.pcie_bytes_per_s() * 1e9;
            let flip = gpu.count_copy(Direction::HostToDevice).1;
            (gpu, vec![(device.index, Engine::FromHost)], ns, flip, Work { pcie_rx_bytes: bytes, ..work })
        }
        (Some(device), None) => {
            let gpu = driver.gpu(device.index)?;
            let ns = HOST_COPY_NS + bytes as f64 / gpu.pcie_bytes_per_s() * 1e9;
            let flip = gpu.count_copy(Direction::DeviceToHost).1;
            (gpu, vec![(device.index, Engine::ToHost)], ns, flip, Work { pcie_tx_bytes: bytes, ..work })
        }
        (Some(source), Some(target)) if source.index == target.index => {
            let gpu = driver.gpu(source.index)?;
            let ns = LAUNCH_NS + 2.0 * bytes as f64 / gpu.hbm_bytes_per_s() * 1e9;
            (gpu, vec![(source.index, Engine::Compute)], ns, None, Work { hbm_bytes: 2 * bytes, ..work })
        }
        (Some(source), Some(target)) => {
            let (gpu, peer) = (driver.gpu(source.index)?, driver.gpu(target.index)?);
            let ns = PEER_COPY_NS + bytes as f64 / gpu.peer_bytes_per_s(peer) * 1e9;
            let flip = gpu.count_copy(Direction::Peer).1;
            peer.work(Work { nvlink_bytes: bytes, ..work });
            let engines = vec![(source.index, Engine::ToPeer), (target.index, Engine::FromPeer)];
            (gpu, engines, ns, flip, Work { nvlink_bytes: bytes, ..work })
        }
    };
    if let Some(bit) = flip {
        // SAFETY: the middle of the range that was just written.
        unsafe { *to.add(length / 2) ^= 1 << (bit % 8) };
    }
    if let Some(device) = to_device {
        driver.apply_bad_cells(device, false);
    }
    let start = driver.timeline.earliest(&engines, stream.done_ps.load(Acquire));
    book(driver, gpu, stream, &engines, start, ns, work);
    Ok(())
}

/// Fills `count` elements of `size` bytes (1, 2 or 4).
pub fn set(driver: &Driver, stream: &Stream, address: u64, value: u32, size: u64, count: u64) -> Result<()> {
    let owner = driver.owner(address).ok_or(Error::INVALID_VALUE)?;
    let device = driver.device(owner.index)?;
    let bytes = count.checked_mul(size).ok_or(Error::INVALID_VALUE)?;
    if !address.is_multiple_of(size) {
        return Err(Error::INVALID_VALUE);
    }
    lock(device.memory()?).check(address, bytes)?;
    let _busy = lock(&device.busy);
    let pointer = std::ptr::with_exposed_provenance_mut::<u8>(address as usize);
    // SAFETY: the range was checked against its allocation, and is aligned to `size`.
    unsafe {
        match size {
            1 => std::ptr::write_bytes(pointer, value as u8, bytes as usize),
            2 => (0..count as usize).for_each(|i| pointer.cast::<u16>().add(i).write(value as u16)),
            _ => (0..count as usize).for_each(|i| pointer.cast::<u32>().add(i).write(value)),
        }
    }
    driver.apply_bad_cells(device, false);
    let gpu = driver.gpu(device.index)?;
    let engines = [(device.index, Engine::Compute)];
    let start = driver.timeline.earliest(&engines, stream.done_ps.load(Acquire));
    let ns = LAUNCH_NS + bytes as f64 / gpu.hbm_bytes_per_s() * 1e9;
    book(
        driver,
        gpu,
        stream,
        &engines,
        start,
        ns,
        Work { intensity: 0.35, hbm_bytes: bytes, ..Work::default() },
    );
    Ok(())
}
