//! Makes NCCL loadable.
//!
//! cudarc looks for `libnccl.so` and a few versioned spellings, never for `libnccl.so.2`, the only name that NVIDIA's
//! run-time packages install. The loader reads its search path once, at the start of a process. So where only
//! `libnccl.so.2` is there, this process makes a private folder with a link `libnccl.so` to it, puts that on the
//! search path, and runs itself again with the request handed on.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use whetstone_burnin::protocol::{Request, Sink};
use whetstone_burnin::suite::{GpuCollectivesParams, TestKind};

use crate::Context;

/// Carries the request over the second start; its presence also stops a third.
pub const REQUEST_VARIABLE: &str = "WHETSTONE_DEVICE_REQUEST";
const LIBRARY: &str = "libnccl.so.2";
const FOLDER: &str = "nccl-library";
/// Linux takes 128 KiB for one variable; a request for 72 GPUs has about 8 KiB.
const MAX_REQUEST_BYTES: usize = 100 << 10;

/// Returns when NCCL can be used; otherwise why not. May replace this process by itself.
pub fn prepare<S: Sink>(params: &GpuCollectivesParams, context: &Context<'_, S>) -> Result<(), String> {
    let folder = context.scratch.join(FOLDER);
    // SAFETY: opens libraries by their usual names; their constructors are the vendor's.
    if unsafe { cudarc::nccl::sys::is_culib_present() } {
        // Loaded by its file from now on; the link has done its work.
        if std::env::var_os(REQUEST_VARIABLE).is_some() {
            // SAFETY: as above; makes cudarc keep the library open before the link goes.
            unsafe { cudarc::nccl::sys::culib() };
            let _ = std::fs::remove_dir_all(&folder);
        }
        return Ok(());
    }
    if std::env::var_os(REQUEST_VARIABLE).is_some() {
        let _ = std::fs::remove_dir_all(&folder);
        return Err(format!("{LIBRARY} was found but cannot be loaded as libnccl.so"));
    }
    let library = find()?;
    let error = run_again(params, context, &folder, &library);
    let _ = std::fs::remove_dir_all(&folder);
    Err(format!("{LIBRARY} cannot be made loadable: {error}"))
}

/// The path from which the loader itself takes `libnccl.so.2`: it knows LD_LIBRARY_PATH and ld.so.cache best.
fn find() -> Result<PathBuf, String> {
    // SAFETY: a vendor library by its usual name; its constructors are the vendor's. Never unloaded: code in it may
    // have registered itself.
    let opened = unsafe { libloading::Library::new(LIBRARY) };
    match opened {
        Ok(library) => std::mem::forget(library),
        Err(error) => {
            return Err(format!("no NCCL: {LIBRARY} is not on this machine's library path ({error})"));
        }
    }
    let maps = std::fs::read_to_string("/proc/self/maps").map_err(|e| format!("/proc/self/maps: {e}"))?;
    mapped(&maps).ok_or_else(|| format!("{LIBRARY} is loaded and not in /proc/self/maps"))
}

/// The mapped file whose name is NCCL's, `libnccl.so.2` or what that links to (`libnccl.so.2.27.3`).
fn mapped(maps: &str) -> Option<PathBuf> {
    maps.lines().filter_map(|line| line.find('/').map(|at| Path::new(&line[at..]))).find_map(|path| {
        path.file_name()?.to_str().filter(|name| name.starts_with(LIBRARY)).map(|_| path.to_owned())
    })
}

/// Returns only if it fails.
fn run_again<S: Sink>(
    params: &GpuCollectivesParams,
    context: &Context<'_, S>,
    folder: &Path,
    library: &Path,
) -> String {
    let request = Request {
        name: "collectives".to_owned(),
        kind: TestKind::GpuCollectives(params.clone()),
        seed: context.seed,
        budget_s: context.deadline.saturating_duration_since(std::time::Instant::now()).as_secs().max(1),
        scratch: context.scratch.to_owned(),
        gpus: context.gpus.to_vec(),
    };
    let request = match serde_json::to_string(&request) {
        Ok(text) if text.len() <= MAX_REQUEST_BYTES => text,
        Ok(text) => return format!("a request of {} bytes cannot be handed on", text.len()),
        Err(error) => return format!("the request cannot be written: {error}"),
    };
    let link = folder.join("libnccl.so");
    let made = std::fs::create_dir_all(folder).and_then(|()| {
        // A link left by a test that was cut off.
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(library, &link)
    });
    if let Err(error) = made {
        return format!("{}: {error}", link.display());
    }
    let absolute = match std::path::absolute(folder) {
        Ok(path) => path,
        Err(error) => return format!("{}: {error}", folder.display()),
    };
    let mut path = OsString::from(absolute);
    if let Some(old) = std::env::var_os("LD_LIBRARY_PATH").filter(|old| !old.is_empty()) {
        path.push(":");
        path.push(old);
    }
    let mut arguments = std::env::args_os();
    let mut again = Command::new("/proc/self/exe");
    if let Some(name) = arguments.next() {
        again.arg0(name);
    }
    let error = again.args(arguments).env("LD_LIBRARY_PATH", path).env(REQUEST_VARIABLE, request).exec();
    format!("second start: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loaded_file_is_found_in_the_maps() {
        let maps = "7f1 r-xp 0 08:01 1  /usr/lib/x86_64-linux-gnu/libc.so.6\n\
                    7f2 r-xp 0 08:01 2  /opt/a b/libnccl.so.2.27.3\n";
        assert_eq!(mapped(maps), Some(PathBuf::from("/opt/a b/libnccl.so.2.27.3")));
        assert_eq!(mapped("7f1 r-xp 0 00:00 0\n"), None);
    }
}
