//! The GPU kernels that this binary carries, and which of them a chip can run.

/// What an image is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Machine code of one architecture.
    Cubin,
    /// Assembly that the driver compiles: for chips that have no cubin.
    Ptx,
}

/// One compiled source file for one architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Image {
    /// Name of the `.cu` file without its ending.
    pub source: &'static str,
    /// `sm_90a`, `sm_80`, `compute_80`.
    pub arch: &'static str,
    pub kind: Kind,
    pub bytes: &'static [u8],
}

/// All images; empty in a build without `make kernels`.
pub fn images() -> &'static [Image] {
    include!(concat!(env!("OUT_DIR"), "/images.rs"))
}

/// SHA-256 over all images and their names, hex; `None` if there are none.
pub fn sha256() -> Option<&'static str> {
    include!(concat!(env!("OUT_DIR"), "/images_sha256.rs"))
}

/// How well an image suits a chip; larger is better, `None` = it cannot run there.
///
/// Machine code runs within its major version from its minor version on; code with the suffix `a` (wgmma,
/// tcgen05) on exactly its own version, with `f` within its family. PTX runs on its own version and all later
/// ones, but for PTX with `a` or `f`.
fn suits(image: &Image, capability: (u32, u32)) -> Option<u32> {
    let version = image.arch.split_once('_')?.1;
    let digits = version.trim_end_matches(['a', 'f']);
    let number: u32 = digits.parse().ok()?;
    let (major, minor) = (number / 10, number % 10);
    let suffix = &version[digits.len()..];
    let runs = match (image.kind, suffix) {
        (_, "a") => (major, minor) == capability,
        (_, "f") | (Kind::Cubin, "") => major == capability.0 && minor <= capability.1,
        (Kind::Ptx, "") => (major, minor) <= capability,
        _ => false,
    };
    let rank = match (image.kind, suffix) {
        (Kind::Cubin, "a") => 3000,
        (Kind::Cubin, "f") => 2000,
        (Kind::Cubin, _) => 1000,
        (Kind::Ptx, _) => 0,
    };
    runs.then_some(rank + number)
}

/// The images of `all` to try on a chip: of each source all that can run there, best first.
pub fn choose(all: &'static [Image], capability: (u32, u32)) -> Vec<&'static Image> {
    let mut fitting: Vec<(u32, &Image)> =
        all.iter().filter_map(|image| Some((suits(image, capability)?, image))).collect();
    fitting.sort_by_key(|(rank, image)| (image.source, std::cmp::Reverse(*rank)));
    fitting.into_iter().map(|(_, image)| image).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn image(source: &'static str, arch: &'static str, kind: Kind) -> Image {
        Image { source, arch, kind, bytes: &[] }
    }

    static ALL: [Image; 7] = [
        image("gemm", "compute_80", Kind::Ptx),
        image("gemm", "sm_80", Kind::Cubin),
        image("gemm", "sm_90a", Kind::Cubin),
        image("gemm", "sm_100a", Kind::Cubin),
        image("gemm", "sm_103a", Kind::Cubin),
        image("memory", "compute_80", Kind::Ptx),
        image("memory", "sm_120a", Kind::Cubin),
    ];

    fn chosen(capability: (u32, u32)) -> Vec<(&'static str, &'static str)> {
        choose(&ALL, capability).into_iter().map(|i| (i.source, i.arch)).collect()
    }

    #[test]
    fn machine_code_before_assembly_and_only_where_it_runs() {
        assert_eq!(chosen((9, 0)), [("gemm", "sm_90a"), ("gemm", "compute_80"), ("memory", "compute_80")]);
        assert_eq!(chosen((8, 9)), [("gemm", "sm_80"), ("gemm", "compute_80"), ("memory", "compute_80")]);
        assert_eq!(chosen((10, 3)), [("gemm", "sm_103a"), ("gemm", "compute_80"), ("memory", "compute_80")]);
        assert_eq!(
            chosen((12, 0)),
            [("gemm", "compute_80"), ("memory", "sm_120a"), ("memory", "compute_80")]
        );
        assert_eq!(chosen((12, 1)), [("gemm", "compute_80"), ("memory", "compute_80")]);
        assert!(chosen((7, 5)).is_empty());
    }

    #[test]
    fn the_hash_goes_with_the_images() {
        assert_eq!(images().is_empty(), sha256().is_none());
    }
}
