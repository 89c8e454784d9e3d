//! What a module's bytes say: PTX text or a cubin.

use crate::error::{Error, Result};

/// Larger images are refused; real ones have some tens of KiB.
const MAX_IMAGE_BYTES: usize = 64 << 20;

/// A kernel that an image has; the number of parameters where the image says it (PTX).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    pub name: String,
    pub parameters: Option<u32>,
}

/// The bytes of the image at `image`: an ELF file as long as its own headers say, else text ended by NUL.
///
/// # Safety
/// `image` points to a complete cubin or a NUL-terminated string.
pub unsafe fn read<'a>(image: *const u8) -> Result<&'a [u8]> {
    if image.is_null() {
        return Err(Error::INVALID_VALUE);
    }
    // SAFETY: the shortest of both kinds; compared byte by byte so that a short text is not read beyond its NUL.
    let is_elf = (0..4).all(|i| unsafe { *image.add(i) } == b"\x7fELF"[i]);
    if is_elf {
        // SAFETY: a complete cubin, as the caller promises; every length is bounded below.
        unsafe { whole_elf(image) }
    } else {
        let mut length = 0;
        // SAFETY: up to the NUL that the caller promises.
        while unsafe { *image.add(length) } != 0 {
            length += 1;
            if length > MAX_IMAGE_BYTES {
                return Err(Error::INVALID_IMAGE);
            }
        }
        // SAFETY: `length` bytes were just read.
        Ok(unsafe { std::slice::from_raw_parts(image, length) })
    }
}

/// The kernels of an image, if a driver of version `cuda` loads it on a chip of this compute capability.
pub fn kernels(image: &[u8], cuda: i32, capability: (u32, u32)) -> Result<Vec<Kernel>> {
    if image.starts_with(b"\x7fELF") {
        return cubin(image, capability);
    }
    let text = image.split(|b| *b == 0).next().unwrap_or_default();
    ptx(std::str::from_utf8(text).map_err(|_| Error::INVALID_IMAGE)?, cuda, capability)
}

/// Little-endian number of `N` bytes at `at`.
fn number<const N: usize>(bytes: &[u8], at: usize) -> Result<usize> {
    let field = bytes.get(at..at + N).ok_or(Error::INVALID_IMAGE)?;
    Ok(field.iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte)))
}

const ELF_HEADER: usize = 64;
const SECTION_HEADER: usize = 64;

/// The section headers' place and number.
fn sections(header: &[u8]) -> Result<(usize, usize)> {
    let (at, size, count) = (number::<8>(header, 40)?, number::<2>(header, 58)?, number::<2>(header, 60)?);
    if size != SECTION_HEADER || at > MAX_IMAGE_BYTES { Err(Error::INVALID_IMAGE) } else { Ok((at, count)) }
}

/// # Safety
/// As for [`read`].
unsafe fn whole_elf<'a>(image: *const u8) -> Result<&'a [u8]> {
    // SAFETY: an ELF file has its header.
    let header = unsafe { std::slice::from_raw_parts(image, ELF_HEADER) };
    let (at, count) = sections(header)?;
    // SAFETY: and the section headers that it names.
    let table = unsafe { std::slice::from_raw_parts(image, at + count * SECTION_HEADER) };
    let mut end = table.len();
    for i in 0..count {
        let section = at + i * SECTION_HEADER;
        const NOBITS: usize = 8;
        if number::<4>(table, section + 4)? != NOBITS {
            end =
                end.max(number::<8>(table, section + 24)?.saturating_add(number::<8>(table, section + 32)?));
        }
    }
    if end > MAX_IMAGE_BYTES {
        return Err(Error::INVALID_IMAGE);
    }
    // SAFETY: and the sections.
    Ok(unsafe { std::slice::from_raw_parts(image, end) })
}

fn cubin(bytes: &[u8], capability: (u32, u32)) -> Result<Vec<Kernel>> {
    const EM_CUDA: usize = 190;
    if number::<2>(bytes, 18)? != EM_CUDA {
        return Err(Error::INVALID_IMAGE);
    }
    // The architecture moved up a byte with ABI version 8 (CUDA 13).
    let flags = number::<4>(bytes, 48)?;
    let chip = if number::<1>(bytes, 8)? >= 8 { flags >> 8 & 0xff } else { flags & 0xff } as u32;
    let (major, minor) = (chip / 10, chip % 10);
    // Machine code runs within its major version from its minor on; from sm_90 on, what ships is
    // architecture-specific ("a") and runs on exactly its own chip.
    let runs = major == capability.0 && (minor == capability.1 || chip < 90 && minor < capability.1);
    if !runs {
        return Err(Error::NO_BINARY_FOR_GPU);
    }
    let (at, count) = sections(bytes)?;
    let names = at + number::<2>(bytes, 62)? * SECTION_HEADER;
    let names = number::<8>(bytes, names + 24)?;
    let mut kernels = Vec::new();
    for i in 0..count {
        let name = names + number::<4>(bytes, at + i * SECTION_HEADER)?;
        let name =
            bytes.get(name..).ok_or(Error::INVALID_IMAGE)?.split(|b| *b == 0).next().unwrap_or_default();
        if let Some(name) = std::str::from_utf8(name).ok().and_then(|n| n.strip_prefix(".text.")) {
            kernels.push(Kernel { name: name.to_owned(), parameters: None });
        }
    }
    Ok(kernels)
}

/// The newest PTX that a driver of this CUDA version reads, times ten (CUDA 13.0 brought PTX 9.0; source: PTX ISA
/// release notes).
fn newest_ptx(cuda: i32) -> i32 {
    let (major, minor) = (cuda / 1000, cuda % 1000 / 10);
    match (major, minor) {
        (13.., _) => (major - 4) * 10 + minor,
        (12, 0..=5) => 80 + minor,
        (12, _) => 79 + minor,
        (11, _) => 70 + minor.min(8),
        _ => 65,
    }
}

fn ptx(text: &str, cuda: i32, capability: (u32, u32)) -> Result<Vec<Kernel>> {
    let directive = |name: &str| {
        let line = text.lines().map(str::trim).find(|l| l.starts_with(name))?;
        Some(line[name.len()..].trim().to_owned())
    };
    let version = directive(".version").ok_or(Error::INVALID_PTX)?;
    let (major, minor) = version.split_once('.').ok_or(Error::INVALID_PTX)?;
    let parse = |x: &str| x.trim().parse::<i32>().map_err(|_| Error::INVALID_PTX);
    if parse(major)? * 10 + parse(minor)? > newest_ptx(cuda) {
        return Err(Error::UNSUPPORTED_PTX_VERSION);
    }
    let target = directive(".target").ok_or(Error::INVALID_PTX)?;
    let target = target.split(',').next().unwrap_or_default().trim().trim_start_matches("sm_").to_owned();
    let exact = target.ends_with('a');
    let chip: u32 = target.trim_end_matches(['a', 'f']).parse().map_err(|_| Error::INVALID_PTX)?;
    let own = capability.0 * 10 + capability.1;
    if chip > own || exact && chip != own {
        return Err(Error::NO_BINARY_FOR_GPU);
    }
    let mut kernels = Vec::new();
    for entry in text.split(".entry").skip(1) {
        let name: String = entry
            .trim_start()
            .chars()
            .take_while(|c| c.is_ascii_alphanumeric() || *c == '_' || *c == '$')
            .collect();
        let list = entry.find('(').zip(entry.find(')')).and_then(|(open, close)| entry.get(open..close));
        let parameters = list.map_or(0, |list| list.matches(".param").count() as u32);
        kernels.push(Kernel { name, parameters: Some(parameters) });
    }
    Ok(kernels)
}
