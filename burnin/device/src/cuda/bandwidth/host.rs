//! Between the host's pinned memory and each GPU.

use cudarc::driver::{PinnedHostSlice, result};
use whetstone_burnin::exact::SplitMix64;
use whetstone_burnin::protocol::Sink;
use whetstone_model::action::{Action, Severity};
use whetstone_model::unit::Unit;

use super::{Test, difference};
use crate::cuda::driver::{Buffer, Gpu};
use crate::cuda::errors::CudaError;
use crate::cuda::gemm::speed::median;

type Blamed = (Option<whetstone_burnin::protocol::GpuTarget>, CudaError);

/// Bytes per second of the copies of one GPU.
#[derive(Default)]
struct Rates {
    to_device: Vec<f64>,
    to_host: Vec<f64>,
    both: Vec<f64>,
}

impl<S: Sink> Test<'_, S> {
    /// Each GPU alone, one after the other: they share root ports, and each one's own rate is asked for.
    pub(super) fn host(&mut self) -> Result<(), Blamed> {
        for (i, gpu) in self.gpus.iter().enumerate() {
            let share = if self.gpus.len() > 1 { 0.5 } else { 1.0 };
            let done = share * i as f64 / self.gpus.len() as f64;
            self.context.sink.progress(done, &format!("{} copies to and from the host", gpu.target.label));
            if i > 0 && self.late() {
                self.unfinished = Some(format!(
                    "the time was spent before {} and the GPUs after it copied to the host",
                    gpu.target.label
                ));
                return Ok(());
            }
            self.one_host(gpu).map_err(|e| (Some(gpu.target.clone()), e))?;
        }
        Ok(())
    }

    fn one_host(&mut self, gpu: &Gpu) -> Result<(), CudaError> {
        let bytes = self.bytes();
        let mut source = pinned(gpu, bytes)?;
        let mut target = pinned(gpu, bytes)?;
        let mut other = pinned(gpu, bytes)?;
        let (device, second) = (Buffer::new(gpu, bytes)?, Buffer::new(gpu, bytes)?);
        let stream = gpu.check("cuStreamCreate", gpu.context.new_stream())?;
        let mut random = SplitMix64::new(self.context.seed ^ 0x636f_7079);
        let source = slice(gpu, &mut source)?;
        source.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&random.next_u64().to_le_bytes()));
        let (target, other) = (slice(gpu, &mut target)?, slice(gpu, &mut other)?);

        let mut rates = Rates::default();
        let (main, side) = (gpu.stream.cu_stream(), stream.cu_stream());
        for repeat in 0..self.params.repeats {
            if repeat > 0 && self.late() {
                break;
            }
            target.fill(0);
            // For all copies here: the host slices are pinned, live through this function and are not touched
            // before the streams have ended; the device ranges are the buffers' own and just as long.
            let before = gpu.mark()?;
            // SAFETY: see above.
            let done = unsafe { result::memcpy_htod_async(device.pointer(), &*source, main) };
            gpu.check("cuMemcpyHtoDAsync", done)?;
            let between = gpu.mark()?;
            gpu.wait("copy to the GPU")?;
            let start_back = gpu.mark()?;
            // SAFETY: see above.
            let done = unsafe { result::memcpy_dtoh_async(target, device.pointer(), main) };
            gpu.check("cuMemcpyDtoHAsync", done)?;
            let after = gpu.mark()?;
            gpu.wait("copy to the host")?;
            rates.to_device.push(bytes as f64 / gpu.seconds(&before, &between)?);
            rates.to_host.push(bytes as f64 / gpu.seconds(&start_back, &after)?);
            self.verify(gpu, source, target, &device)?;

            // Both directions at once: what was verified goes back while the source comes again, elsewhere.
            other.fill(0);
            let (up, down) = (gpu.mark()?, gpu.mark_on(&stream)?);
            // SAFETY: see above.
            let first = unsafe { result::memcpy_htod_async(second.pointer(), &*source, main) };
            // SAFETY: see above.
            let back = unsafe { result::memcpy_dtoh_async(other, device.pointer(), side) };
            gpu.check("cuMemcpyHtoDAsync", first)?;
            gpu.check("cuMemcpyDtoHAsync", back)?;
            let (up_end, down_end) = (gpu.mark()?, gpu.mark_on(&stream)?);
            gpu.wait("copy to the GPU")?;
            gpu.check("copy to the host", stream.synchronize())?;
            let longest = gpu.seconds(&up, &up_end)?.max(gpu.seconds(&down, &down_end)?);
            rates.both.push(2.0 * bytes as f64 / longest);
            self.verify(gpu, source, other, &device)?;
            // What arrived during the traffic in both directions is read back alone.
            target.fill(0);
            // SAFETY: see above.
            let done = unsafe { result::memcpy_dtoh_async(target, second.pointer(), main) };
            gpu.check("cuMemcpyDtoHAsync", done)?;
            gpu.wait("copy to the host")?;
            self.verify(gpu, source, target, &second)?;
        }
        for (metric, rates) in [
            ("pcie.h2d.bandwidth", &rates.to_device),
            ("pcie.d2h.bandwidth", &rates.to_host),
            ("pcie.bidir.bandwidth", &rates.both),
        ] {
            if let Some(rate) = median(rates) {
                self.reading(gpu, metric, rate / 1e9, Unit::GBps);
            }
        }
        Ok(())
    }

    /// `got` came back from `device`, which was written from `expected`. A second reading tells the directions apart.
    fn verify(&mut self, gpu: &Gpu, expected: &[u8], got: &[u8], device: &Buffer) -> Result<(), CudaError> {
        let Some((at, xor, bits)) = difference(expected, got) else { return Ok(()) };
        let again: Vec<u8> = device.download(gpu, 0, expected.len())?;
        let direction = if difference(expected, &again).is_none() {
            "from the GPU to the host (a second read was right)"
        } else {
            "from the host to the GPU, or in its memory (a second read was wrong too)"
        };
        let label = &gpu.target.label;
        let detail = format!(
            "{label}: copy {direction}: {bits} wrong bit{} in {} MiB, first at byte {at:#x}, xor {xor:#04x}",
            if bits == 1 { "" } else { "s" },
            self.params.mib
        );
        self.found("copy-corruption", gpu.target.uuid.clone(), Severity::Fault, Action::Replace, detail);
        Ok(())
    }
}

fn pinned(gpu: &Gpu, bytes: usize) -> Result<PinnedHostSlice<u8>, CudaError> {
    // SAFETY: the memory is written before it is read (filled below). No write-combining: it is read back.
    let slice = unsafe { gpu.context.alloc_pinned_with_flags::<u8>(bytes, 0) };
    gpu.check(&format!("cuMemHostAlloc {bytes} bytes"), slice)
}

/// The pinned bytes, all set.
fn slice<'s>(gpu: &Gpu, pinned: &'s mut PinnedHostSlice<u8>) -> Result<&'s mut [u8], CudaError> {
    let bytes = gpu.check("pinned memory", pinned.as_mut_slice())?;
    bytes.fill(0);
    Ok(bytes)
}
