//! What changes while a simulated blade runs: one file, mapped by every process that opened a simulated library.
//!
//! Fixed layout, only atomics, and all zeros is a good fresh state, so nobody has to be first.

use std::fs::File;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::AcqRel, Ordering::Acquire};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Name of the file in a blade's directory.
pub const STATE_FILE: &str = "state.bin";
/// GPUs of one blade at most.
pub const MAX_GPUS: usize = 16;
/// XID events that are kept; each fault raises one at most, so a blade never has more.
pub const MAX_XIDS: usize = 256;
/// First word of the file; raised with the layout.
const MAGIC: u64 = 0x7768_6574_7369_6d02;

/// The mapped file's layout. Times are nanoseconds of CLOCK_MONOTONIC unless they say "since zero".
#[repr(C)]
pub struct Layout {
    magic: AtomicU64,
    /// CLOCK_MONOTONIC when the blade was first opened: time zero.
    pub zero_ns: AtomicU64,
    /// Bit i: the blade's own fault i has happened.
    pub fired: AtomicU64,
    /// Lines written to the kernel log by the simulation.
    pub kmsg_lines: AtomicU64,
    /// XIDs raised so far; the last ones are in `xids`.
    pub xid_count: AtomicU64,
    /// `1 << 63 | gpu index << 32 | code`; 0 while it is being written.
    pub xids: [AtomicU64; MAX_XIDS],
    pub gpus: [GpuState; MAX_GPUS],
}

/// One GPU's part. Indexed like `BladeScenario::gpus`, not by slot.
#[repr(C)]
pub struct GpuState {
    /// Under load until then (nanoseconds since zero).
    pub load_until_ns: AtomicU64,
    /// Real time under load so far, including what `load_until_ns` promises.
    pub loaded_ns: AtomicU64,
    /// How hard the present load is, 0 to 1000.
    pub intensity: AtomicU64,
    /// The device's own clock: what its kernels and copies would have taken on the SKU.
    pub virtual_ns: AtomicU64,
    pub launches: AtomicU64,
    pub flops: AtomicU64,
    pub hbm_bytes: AtomicU64,
    pub pcie_tx_bytes: AtomicU64,
    pub pcie_rx_bytes: AtomicU64,
    pub nvlink_bytes: AtomicU64,
    /// Copies by direction: host to device, device to host, peer.
    pub copies: [AtomicU64; 3],
    /// Collectives that this GPU took part in.
    pub collectives: AtomicU64,
    /// Temperature above idle, thousandths of a degree C, as of `heat_at_ns` (since zero).
    pub heat_milli: AtomicI64,
    pub heat_at_ns: AtomicU64,
    /// Energy used since zero, micro-joule.
    pub energy_uj: AtomicU64,
    /// Uncorrectable errors beyond the planted ones, counted by the simulated driver (sticky context errors).
    pub ecc_uncorrectable: AtomicU64,
    /// Memory that simulated contexts hold, bytes.
    pub allocated_bytes: AtomicU64,
    /// Not 0 once the GPU has fallen off the bus.
    pub lost: AtomicU64,
    /// Bit i: this GPU's fault i has happened.
    pub fired: AtomicU64,
    /// Free for the driver simulator: a transient flip that was already done, and the like (bit = fault index).
    pub driver_done: AtomicU64,
    pub spare: [AtomicU64; 8],
}

/// The mapping; unmapped on drop.
pub struct State {
    map: NonNull<Layout>,
}

// SAFETY: the mapping is plain shared memory and is only reached through atomics.
unsafe impl Send for State {}
// SAFETY: as above; every field is an atomic.
unsafe impl Sync for State {}

impl State {
    /// Opens or makes the file at `path` and maps it.
    pub fn open(path: &Path) -> std::io::Result<State> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        let size = size_of::<Layout>();
        if file.metadata()?.len() < size as u64 {
            file.set_len(size as u64)?;
        }
        // SAFETY: a fresh shared mapping of `size` bytes of a file that is at least that long; nothing else owns it.
        let raw = unsafe {
            mmap(std::ptr::null_mut(), size, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &file, 0)?
        };
        let map =
            NonNull::new(raw.cast::<Layout>()).ok_or_else(|| std::io::Error::other("mapped at address 0"))?;
        let state = State { map };
        match state.get().magic.compare_exchange(0, MAGIC, AcqRel, Acquire) {
            Ok(_) | Err(MAGIC) => Ok(state),
            Err(other) => {
                Err(std::io::Error::other(format!("not a state file of this version ({other:#x})")))
            }
        }
    }

    pub fn get(&self) -> &Layout {
        // SAFETY: the mapping lives as long as `self`, is page-aligned, large enough, and all bit patterns of atomics are valid.
        unsafe { self.map.as_ref() }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `open`; references into it cannot outlive `self`.
        // An error would mean that the kernel does not know the mapping; there is nothing left to undo.
        let _ = unsafe { munmap(self.map.as_ptr().cast(), size_of::<Layout>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_openers_see_one_state_and_a_foreign_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(STATE_FILE);
        let (a, b) = (State::open(&path).unwrap(), State::open(&path).unwrap());
        a.get().gpus[3].launches.fetch_add(5, AcqRel);
        assert_eq!(b.get().gpus[3].launches.load(Acquire), 5);
        std::fs::write(dir.path().join("other"), [7_u8; 4096]).unwrap();
        assert!(State::open(&dir.path().join("other")).is_err());
    }
}
