//! One GPU as a test holds it: found by UUID, with its context, stream and kernels.
//!
//! cudarc loads the driver library at the first call and panics where it or a symbol is missing. The library is
//! looked for first; a panic that is left (an old driver without some symbol) is caught in [`guarded`] and said.

use std::cell::RefCell;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaEvent, CudaFunction, CudaModule, CudaStream, DeviceRepr, result, sys};
use whetstone_burnin::protocol::{GpuTarget, Sink};

use super::errors::{CudaError, judge};
use super::kernels::{self, Kind};
use crate::{Context, Done};

/// Bytes that cross to the device and back as they are.
///
/// # Safety
/// The type is `repr(C)` or a primitive, without padding, and every bit pattern is a value.
pub unsafe trait Plain: Copy + Default {}
// SAFETY: primitives.
unsafe impl Plain for u8 {}
// SAFETY: primitives.
unsafe impl Plain for u32 {}
// SAFETY: primitives.
unsafe impl Plain for u64 {}

/// `WsTile` of ABI.md.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Tile {
    pub smid: u32,
    pub mismatches: u32,
    pub digest: u64,
    pub start_ns: u64,
    pub end_ns: u64,
}
// SAFETY: 32 bytes of integers, largest alignment 8, no padding.
unsafe impl Plain for Tile {}

/// `WsMemFault` of ABI.md.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct MemoryFault {
    pub word_index: u64,
    pub expected: u64,
    pub got: u64,
    pub smid: u32,
    pub pass: u32,
}
// SAFETY: 32 bytes of integers, largest alignment 8, no padding.
unsafe impl Plain for MemoryFault {}

/// An image and what the driver said to it.
type Loaded = (&'static kernels::Image, Result<Arc<CudaModule>, CudaError>);

/// A GPU that is open.
pub struct Gpu {
    pub target: GpuTarget,
    /// Product name as the driver tells it.
    pub name: String,
    pub capability: (u32, u32),
    pub sms: u32,
    pub context: Arc<CudaContext>,
    pub stream: Arc<CudaStream>,
    /// Images as far as they were needed.
    modules: RefCell<Vec<Loaded>>,
}

/// Fails with [`CudaError::NoDriver`] where cudarc would panic.
pub fn require_driver() -> Result<(), CudaError> {
    // SAFETY: opens libraries by their usual names; their constructors are the vendor's.
    if unsafe { sys::is_culib_present() } { Ok(()) } else { Err(CudaError::NoDriver) }
}

/// `GPU-8-4-4-4-12`, as NVML and nvidia-smi print it.
fn uuid_text(uuid: sys::CUuuid) -> String {
    let hex: Vec<String> = uuid.bytes.iter().map(|b| format!("{:02x}", *b as u8)).collect();
    let part = |range: std::ops::Range<usize>| hex[range].concat();
    format!("GPU-{}-{}-{}-{}-{}", part(0..4), part(4..6), part(6..8), part(8..10), part(10..16))
}

impl Gpu {
    pub fn open(target: &GpuTarget) -> Result<Gpu, CudaError> {
        require_driver()?;
        let fail = |what: &str, e| CudaError::call(what, e);
        result::init().map_err(|e| fail("cuInit", e))?;
        let seen = result::device::get_count().map_err(|e| fail("cuDeviceGetCount", e))?;
        for ordinal in 0..seen {
            let device = result::device::get(ordinal).map_err(|e| fail("cuDeviceGet", e))?;
            let uuid = result::device::get_uuid(device).map_err(|e| fail("cuDeviceGetUuid", e))?;
            if uuid_text(uuid) == target.uuid.as_str().to_ascii_lowercase().replacen("gpu-", "GPU-", 1) {
                return Gpu::open_ordinal(target, usize::try_from(ordinal).unwrap_or_default());
            }
        }
        Err(CudaError::NoSuchGpu { uuid: target.uuid.as_str().to_owned(), seen })
    }

    fn open_ordinal(target: &GpuTarget, ordinal: usize) -> Result<Gpu, CudaError> {
        let fail = |what: &str, e| CudaError::call(what, e);
        let context = CudaContext::new(ordinal).map_err(|e| fail("open context", e))?;
        // SAFETY: every buffer here has one owner that waits for its stream before it frees; cudarc's own event
        // tracking would add an event per allocation and launch.
        unsafe { context.disable_event_tracking() };
        let attribute = |which| context.attribute(which).map_err(|e| fail("cuDeviceGetAttribute", e));
        use sys::CUdevice_attribute_enum as A;
        let number = |value: i32| u32::try_from(value).unwrap_or(0);
        let capability = (
            number(attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?),
            number(attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?),
        );
        let sms = number(attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?);
        let name = context.name().map_err(|e| fail("cuDeviceGetName", e))?;
        let stream = context.new_stream().map_err(|e| fail("cuStreamCreate", e))?;
        let modules = RefCell::new(Vec::new());
        Ok(Gpu { target: target.clone(), name, capability, sms, context, stream, modules })
    }

    /// `result` of the driver call `what`, with this GPU's label in the error.
    pub fn check<T>(
        &self,
        what: &str,
        result: Result<T, cudarc::driver::DriverError>,
    ) -> Result<T, CudaError> {
        result.map_err(|e| CudaError::call(what, e))
    }

    /// Free and total memory, bytes.
    pub fn memory(&self) -> Result<(u64, u64), CudaError> {
        let (free, total) = self.check("cuMemGetInfo", self.context.mem_get_info())?;
        Ok((free as u64, total as u64))
    }

    /// A kernel by name, from the best image that has it.
    pub fn kernel(&self, name: &str) -> Result<CudaFunction, CudaError> {
        if kernels::images().is_empty() {
            return Err(CudaError::NoKernels);
        }
        let candidates = kernels::choose(kernels::images(), self.capability);
        if candidates.is_empty() {
            let (major, minor) = self.capability;
            return Err(CudaError::NoImage { chip: self.name.clone(), major, minor });
        }
        for image in candidates {
            let Ok(module) = self.module(image) else { continue };
            match module.load_function(name) {
                Ok(function) => return Ok(function),
                Err(e) if e.0 == sys::CUresult::CUDA_ERROR_NOT_FOUND => {}
                Err(e) => return Err(CudaError::call(format!("cuModuleGetFunction {name}"), e)),
            }
        }
        // Every image refused to load: say why the best one did.
        let refused = self.modules.borrow().iter().find_map(|(_, module)| module.as_ref().err().cloned());
        let loaded = self.modules.borrow().iter().any(|(_, module)| module.is_ok());
        match refused {
            Some(error) if !loaded => Err(error),
            _ => Err(CudaError::NoKernel { kernel: name.to_owned() }),
        }
    }

    /// The image's module, loaded once.
    fn module(&self, image: &'static kernels::Image) -> Result<Arc<CudaModule>, CudaError> {
        let known = self.modules.borrow().iter().find(|(i, _)| *i == image).map(|(_, module)| module.clone());
        if let Some(module) = known {
            return module;
        }
        let ptx = match image.kind {
            Kind::Cubin => cudarc::nvrtc::Ptx::from_binary(image.bytes.to_vec()),
            // A NUL inside would be a broken build; the text is cut there.
            Kind::Ptx => {
                let text = image.bytes.split(|b| *b == 0).next().unwrap_or_default();
                cudarc::nvrtc::Ptx::from_src(String::from_utf8_lossy(text))
            }
        };
        let what = format!("cuModuleLoadData {}.{}", image.source, image.arch);
        let module = self.context.load_module(ptx).map_err(|e| CudaError::call(what, e));
        self.modules.borrow_mut().push((image, module.clone()));
        module
    }
}

/// Device memory with one owner. Freed after its stream has ended, so no kernel can outlive it.
pub struct Buffer {
    pointer: u64,
    bytes: usize,
    stream: Arc<CudaStream>,
}

impl Buffer {
    /// Uninitialised device memory.
    pub fn new(gpu: &Gpu, bytes: usize) -> Result<Buffer, CudaError> {
        gpu.check("bind context", gpu.context.bind_to_thread())?;
        // SAFETY: the context is bound; the pointer is freed once, in `drop`.
        let pointer = unsafe { result::malloc_sync(bytes.max(1)) };
        let pointer = gpu.check(&format!("cuMemAlloc {bytes} bytes"), pointer)?;
        Ok(Buffer { pointer, bytes, stream: gpu.stream.clone() })
    }

    /// Device memory with these values.
    pub fn from<T: Plain>(gpu: &Gpu, values: &[T]) -> Result<Buffer, CudaError> {
        let buffer = Buffer::new(gpu, size_of_val(values))?;
        buffer.upload(gpu, values)?;
        Ok(buffer)
    }

    /// Device memory with all bytes zero.
    pub fn zeros(gpu: &Gpu, bytes: usize) -> Result<Buffer, CudaError> {
        let buffer = Buffer::new(gpu, bytes)?;
        buffer.clear(gpu)?;
        Ok(buffer)
    }

    pub fn clear(&self, gpu: &Gpu) -> Result<(), CudaError> {
        gpu.check("bind context", gpu.context.bind_to_thread())?;
        // SAFETY: the range is this buffer's own.
        let done = unsafe { result::memset_d8_async(self.pointer, 0, self.bytes, self.stream.cu_stream()) };
        gpu.check("cuMemsetD8", done)?;
        gpu.check("cuStreamSynchronize", self.stream.synchronize())
    }

    /// Copies `values` to the start of the buffer and waits.
    pub fn upload<T: Plain>(&self, gpu: &Gpu, values: &[T]) -> Result<(), CudaError> {
        if size_of_val(values) > self.bytes {
            return Err(CudaError::Other(format!("{} bytes into {}", size_of_val(values), self.bytes)));
        }
        gpu.check("bind context", gpu.context.bind_to_thread())?;
        // SAFETY: the source lives until the copy has ended (synchronised below), the target is large enough.
        let done = unsafe { result::memcpy_htod_async(self.pointer, values, self.stream.cu_stream()) };
        gpu.check("cuMemcpyHtoD", done)?;
        gpu.check("cuStreamSynchronize", self.stream.synchronize())
    }

    /// `count` values from byte `offset` on; waits for the work before it.
    pub fn download<T: Plain>(&self, gpu: &Gpu, offset: usize, count: usize) -> Result<Vec<T>, CudaError> {
        let mut values = vec![T::default(); count];
        if offset + size_of_val(values.as_slice()) > self.bytes {
            return Err(CudaError::Other(format!("{count} values at {offset} of {} bytes", self.bytes)));
        }
        gpu.check("bind context", gpu.context.bind_to_thread())?;
        let from = self.pointer + offset as u64;
        // SAFETY: the target lives until the copy has ended, the source range is inside the buffer, and every bit
        // pattern is a `T` (`Plain`).
        let done = unsafe { result::memcpy_dtoh_async(&mut values, from, self.stream.cu_stream()) };
        gpu.check("cuMemcpyDtoH", done)?;
        gpu.check("cuStreamSynchronize", self.stream.synchronize())?;
        Ok(values)
    }

    /// The single number that the buffer starts with. One that is not zero is read twice: it accuses.
    pub fn count(&self, gpu: &Gpu, what: &'static str) -> Result<u32, CudaError> {
        let read = || Ok(self.download::<u32>(gpu, 0, 1)?.first().copied().unwrap_or(0));
        let first = read()?;
        if first == 0 {
            return Ok(0);
        }
        match read()? {
            second if second == first => Ok(first),
            second => Err(CudaError::Unreliable { what, first, second }),
        }
    }

    /// The device address; an argument of kernels.
    pub fn pointer(&self) -> u64 {
        self.pointer
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // Errors here were already seen by the call that caused them; the process ends soon after a test.
        let _ = self.stream.context().bind_to_thread().and_then(|()| self.stream.synchronize());
        // SAFETY: allocated in `new`, freed only here, and no work uses it any more.
        let _ = unsafe { result::free_sync(self.pointer) };
    }
}

/// Arguments of a launch: kept alive until the launch call has copied them.
#[derive(Default)]
pub struct Arguments(Vec<Argument>);

enum Argument {
    U32(u32),
    U64(u64),
}

impl Arguments {
    pub fn new() -> Arguments {
        Arguments::default()
    }
    pub fn pointer(mut self, buffer: &Buffer) -> Self {
        self.0.push(Argument::U64(buffer.pointer));
        self
    }
    pub fn u64(mut self, value: u64) -> Self {
        self.0.push(Argument::U64(value));
        self
    }
    pub fn u32(mut self, value: u32) -> Self {
        self.0.push(Argument::U32(value));
        self
    }
}

impl Gpu {
    /// Puts a kernel into the stream: `blocks` × `threads`. The arguments must be those of ABI.md.
    pub fn launch(
        &self,
        name: &str,
        function: &CudaFunction,
        blocks: u32,
        threads: u32,
        arguments: &Arguments,
    ) -> Result<(), CudaError> {
        fn address<T: DeviceRepr>(value: &T) -> *mut std::ffi::c_void {
            std::ptr::from_ref(value).cast_mut().cast()
        }
        let mut pointers: Vec<_> = arguments
            .0
            .iter()
            .map(|argument| match argument {
                Argument::U32(value) => address(value),
                Argument::U64(value) => address(value),
            })
            .collect();
        self.check("bind context", self.context.bind_to_thread())?;
        // SAFETY: the driver copies the arguments during the call, which `arguments` outlives; their number and types
        // are the kernel's (ABI.md), their buffers are freed only after the stream has ended.
        let done = unsafe {
            result::launch_kernel(
                function.cu_function(),
                (blocks.max(1), 1, 1),
                (threads, 1, 1),
                0,
                self.stream.cu_stream(),
                &mut pointers,
            )
        };
        self.check(&format!("launch {name}"), done)
    }

    /// Waits until the stream is done.
    pub fn wait(&self, what: &str) -> Result<(), CudaError> {
        self.check(what, self.stream.synchronize())
    }

    /// A mark in the stream that takes the time.
    pub fn mark(&self) -> Result<CudaEvent, CudaError> {
        self.mark_on(&self.stream)
    }

    pub fn mark_on(&self, stream: &CudaStream) -> Result<CudaEvent, CudaError> {
        let event = self.context.new_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT));
        let event = self.check("cuEventCreate", event)?;
        self.check("cuEventRecord", event.record(stream))?;
        Ok(event)
    }

    /// Seconds between two marks; waits for the second. Never zero.
    pub fn seconds(&self, from: &CudaEvent, to: &CudaEvent) -> Result<f64, CudaError> {
        let ms = self.check("cuEventElapsedTime", from.elapsed_ms(to))?;
        Ok((f64::from(ms) * 1e-3).max(1e-9))
    }
}

/// Runs a test so that nothing of CUDA escapes: an error is judged by the table in [`super::errors`], a panic
/// (cudarc, when the driver lacks a symbol) becomes *inconclusive*.
pub fn guarded<S: Sink>(
    context: &Context<'_, S>,
    test: impl FnOnce() -> Result<Done, (Option<GpuTarget>, CudaError)>,
) -> Done {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(test)) {
        Ok(Ok(done)) => done,
        Ok(Err((gpu, error))) => {
            let (finding, done) = judge(&error, gpu.as_ref());
            finding
                .into_iter()
                .for_each(|f| context.sink.emit(whetstone_burnin::protocol::Event::Finding(f)));
            done
        }
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("unknown");
            let line = text.lines().next().unwrap_or_default();
            Done::inconclusive(format!("the CUDA driver library cannot be used: {line}"))
        }
    }
}

/// A test of one GPU: opens it, and blames it for what goes wrong.
pub fn on_one_gpu<S: Sink>(
    context: &Context<'_, S>,
    test: impl FnOnce(&Gpu) -> Result<Done, CudaError>,
) -> Done {
    let Some(target) = context.gpus.first() else {
        return Done::not_applicable("no GPU");
    };
    guarded(context, || {
        let blame = |e| (Some(target.clone()), e);
        let gpu = Gpu::open(target).map_err(blame)?;
        test(&gpu).map_err(blame)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_read_as_nvml_prints_them() {
        let bytes = std::array::from_fn(|i| (i as u8 * 17) as std::ffi::c_char);
        assert_eq!(uuid_text(sys::CUuuid { bytes }), "GPU-00112233-4455-6677-8899-aabbccddeeff");
    }
}
