//! Modules, functions, launches.

use std::ffi::{CStr, c_char, c_int, c_void};

use super::{call, put};
use crate::driver::{self, Driver, Function, Module};
use crate::error::{Error, Result};
use crate::image;
use crate::launch::{self, MAX_SHARED, MAX_THREADS};
use crate::runtime::{self, Arguments, Dim};

/// Larger module files are refused.
const MAX_FILE_BYTES: u64 = 64 << 20;

fn load(driver: &Driver, module: *mut *mut c_void, image: &[u8]) -> Result<()> {
    let device = driver.current()?;
    let gpu = driver.gpu(device.index)?;
    let kernels = image::kernels(image, driver.sim.blade().cuda, gpu.sku().compute_capability)?;
    put(module, driver.modules.add(Module { device: device.index, kernels }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(module: *mut *mut c_void, image: *const c_void) -> u32 {
    // SAFETY: the image is complete, as the interface asks.
    call("cuModuleLoadData", None, |driver| load(driver, module, unsafe { image::read(image.cast())? }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadDataEx(
    module: *mut *mut c_void,
    image: *const c_void,
    _options: u32,
    _names: *mut c_int,
    _values: *mut *mut c_void,
) -> u32 {
    // SAFETY: as above.
    call("cuModuleLoadDataEx", None, |driver| load(driver, module, unsafe { image::read(image.cast())? }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoad(module: *mut *mut c_void, path: *const c_char) -> u32 {
    call("cuModuleLoad", None, |driver| {
        if path.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        // SAFETY: a NUL-terminated path, as the interface asks.
        let path = unsafe { CStr::from_ptr(path) }.to_str().map_err(|_| Error::INVALID_VALUE)?;
        let size = std::fs::metadata(path).map_err(|_| Error::FILE_NOT_FOUND)?.len();
        if size > MAX_FILE_BYTES {
            return Err(Error::INVALID_IMAGE);
        }
        load(driver, module, &std::fs::read(path).map_err(|_| Error::FILE_NOT_FOUND)?)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleUnload(module: *mut c_void) -> u32 {
    call("cuModuleUnload", None, |driver| driver.modules.remove(module).map(|_| ()))
}

/// Found only if the image has the kernel and the host build can run it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(
    function: *mut *mut c_void,
    module: *mut c_void,
    name: *const c_char,
) -> u32 {
    call("cuModuleGetFunction", None, |driver| {
        let module = driver.modules.get(module)?;
        driver.device(module.device)?;
        if name.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        // SAFETY: a NUL-terminated name, as the interface asks.
        let name = unsafe { CStr::from_ptr(name) }.to_str().map_err(|_| Error::NOT_FOUND)?;
        let in_image = module.kernels.iter().find(|k| k.name == name).ok_or(Error::NOT_FOUND)?;
        let kernel = runtime::find(name).ok_or(Error::NOT_FOUND)?;
        if in_image.parameters.is_some_and(|n| n != kernel.parameters) {
            // The image was built from other sources than this library.
            return Err(Error::INVALID_IMAGE);
        }
        put(function, driver.functions.add(Function { device: module.device, name: name.to_owned(), kernel }))
    })
}

/// 0 threads per block, 1 static shared bytes, 4 registers, 5 and 6 PTX and binary version, 8 dynamic shared limit.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncGetAttribute(value: *mut c_int, which: c_int, function: *mut c_void) -> u32 {
    call("cuFuncGetAttribute", None, |driver| {
        let function = driver.functions.get(function)?;
        let capability = driver.gpu(function.device)?.sku().compute_capability;
        let answer = match which {
            0 => launch::max_threads(&function.name) as c_int,
            4 => 128,
            5 | 6 => (capability.0 * 10 + capability.1) as c_int,
            8 => MAX_SHARED as c_int,
            _ => 0,
        };
        put(value, answer)
    })
}

/// Only the limit of dynamic shared memory can be asked for, and no kernel here needs more than the default.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncSetAttribute(function: *mut c_void, which: c_int, value: c_int) -> u32 {
    const DYNAMIC_SHARED: c_int = 8;
    call("cuFuncSetAttribute", None, |driver| {
        driver.functions.get(function)?;
        let good = which != DYNAMIC_SHARED || (0..=MAX_SHARED as c_int).contains(&value);
        if good { Ok(()) } else { Err(Error::INVALID_VALUE) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncSetCacheConfig(function: *mut c_void, _config: c_int) -> u32 {
    call("cuFuncSetCacheConfig", None, |driver| driver.functions.get(function).map(|_| ()))
}

fn occupancy(driver: &Driver, blocks: *mut c_int, function: *mut c_void, threads: c_int) -> Result<()> {
    let function = driver.functions.get(function)?;
    let threads =
        u64::try_from(threads).ok().filter(|t| (1..=MAX_THREADS).contains(t)).ok_or(Error::INVALID_VALUE)?;
    // The GEMM kernels hold 42 KiB of shared memory: five of them fill 228 KiB.
    let by_shared = if function.name.starts_with("gemm_") { 5 } else { 32 };
    put(blocks, (2048 / threads).min(by_shared) as c_int)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
    blocks: *mut c_int,
    function: *mut c_void,
    threads: c_int,
    _shared: usize,
) -> u32 {
    call("cuOccupancyMaxActiveBlocksPerMultiprocessor", None, |d| occupancy(d, blocks, function, threads))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    blocks: *mut c_int,
    function: *mut c_void,
    threads: c_int,
    _shared: usize,
    _flags: u32,
) -> u32 {
    call("cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags", None, |d| {
        occupancy(d, blocks, function, threads)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: *mut c_void,
    grid_x: u32,
    grid_y: u32,
    grid_z: u32,
    block_x: u32,
    block_y: u32,
    block_z: u32,
    shared: u32,
    stream: *mut c_void,
    parameters: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> u32 {
    let device = driver::get().ok().and_then(|d| d.stream(stream).ok().map(|s| s.device));
    call("cuLaunchKernel", device, |driver| {
        let function = driver.functions.get(function)?;
        let stream = driver.stream(stream)?;
        // Arguments packed into one buffer (`extra`) are not understood here.
        if !extra.is_null() || parameters.is_null() && function.kernel.parameters > 0 {
            return Err(Error::INVALID_VALUE);
        }
        let (grid, block) =
            (Dim { x: grid_x, y: grid_y, z: grid_z }, Dim { x: block_x, y: block_y, z: block_z });
        launch::kernel(driver, &function, &stream, grid, block, shared, Arguments(parameters))
    })
}
