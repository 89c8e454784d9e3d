//! Memory straight from the kernel: page-aligned, zeroed, given back when dropped, and never asked for in one
//! piece that the machine may not have.

use std::io;
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Types for which every bit pattern is a value, so that mapped memory may be viewed as them.
///
/// # Safety
/// Implementors have no padding, no invalid bit pattern and an alignment of at most a page.
pub unsafe trait Plain: Copy + Send + Sync + 'static {}
// SAFETY: primitive numbers: no padding, all bit patterns valid, alignment at most 16.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for i8 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for i16 {}
// SAFETY: as above.
unsafe impl Plain for i32 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: as above.
unsafe impl Plain for f32 {}
// SAFETY: as above.
unsafe impl Plain for f64 {}

/// The bytes of plain values.
pub fn bytes_of<T: Plain>(values: &mut [T]) -> &mut [u8] {
    let len = size_of_val(values);
    // SAFETY: `T` is plain: its bytes may be read and written freely; the length is that of the slice.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), len) }
}

/// A zeroed, page-aligned array of `len` values, huge pages where the kernel gives them.
#[derive(Debug)]
pub struct Pages<T: Plain> {
    at: NonNull<T>,
    len: usize,
    mapped: usize,
}

// SAFETY: it owns its mapping, and `T: Plain` is `Send`.
unsafe impl<T: Plain> Send for Pages<T> {}
// SAFETY: shared access only reads plain values.
unsafe impl<T: Plain> Sync for Pages<T> {}

impl<T: Plain> Pages<T> {
    /// Maps memory without touching it: pages become real on first write, on the node of the core that writes.
    pub fn new(len: usize) -> io::Result<Self> {
        let bytes = len.checked_mul(size_of::<T>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mapped = bytes.max(1);
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice aliases nothing.
        let at = unsafe { mmap_anonymous(std::ptr::null_mut(), mapped, access, flags) }?;
        // SAFETY: the range was just mapped; the advice changes no content. Without huge pages it only runs slower.
        let _ = unsafe { madvise(at, mapped, Advice::LinuxHugepage) };
        let at = NonNull::new(at.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { at, len, mapped })
    }

    /// Maps memory and makes every page real at once, on the calling core's node; an error when the kernel has none to give.
    pub fn populated(len: usize) -> io::Result<Self> {
        let mut pages = Self::new(len)?;
        // SAFETY: the range is mapped and ours; populating changes no content.
        match unsafe { madvise(pages.at.as_ptr().cast(), pages.mapped, Advice::LinuxPopulateWrite) } {
            Ok(()) => Ok(pages),
            Err(rustix::io::Errno::INVAL) => {
                // Kernels before 5.14: a write to each page does it.
                let step = (rustix::param::page_size() / size_of::<T>()).max(1);
                for index in (0..len).step_by(step) {
                    // SAFETY: `index` is inside the slice; volatile, so that the write of what is there is not left out.
                    unsafe {
                        let at = pages.as_mut_ptr().add(index);
                        at.write_volatile(at.read_volatile());
                    }
                }
                Ok(pages)
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl<T: Plain> std::ops::Deref for Pages<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `len` values lie in the mapping, zeroed or written since; plain values are always valid.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

impl<T: Plain> std::ops::DerefMut for Pages<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `&mut self` makes it the only view.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

impl<T: Plain> Drop for Pages<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no view of it outlives `self`. An error would mean that it was not mapped.
        let _ = unsafe { munmap(self.at.as_ptr().cast(), self.mapped) };
    }
}
