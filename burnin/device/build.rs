//! Embeds the compiled GPU kernels: every `*.cubin` and `*.ptx` in `$WHETSTONE_KERNELS`, or in `target/kernels` of the
//! workspace. Without any the crate builds all the same, and the GPU tests say that they have no kernels.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Larger than any image by far: a stray file must not make a huge binary.
const MAX_IMAGE_BYTES: u64 = 64 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-env-changed=WHETSTONE_KERNELS");
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let folder = match std::env::var_os("WHETSTONE_KERNELS") {
        Some(named) => PathBuf::from(named),
        None => {
            let manifest = std::env::var_os("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set")?;
            let folder = Path::new(&manifest).join("../../target/kernels");
            // Cargo takes a watched path that is missing for changed, on every build; an empty folder is watched well.
            // A read-only tree is no reason to fail.
            let _ = std::fs::create_dir_all(&folder);
            folder
        }
    };
    println!("cargo::rerun-if-changed={}", folder.display());

    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(".cubin") || name.ends_with(".ptx"))
        .collect();
    names.sort();

    let mut hash = Sha256::new();
    let mut table = String::from("&[\n");
    for name in &names {
        let path = folder.join(name);
        if std::fs::metadata(&path)?.len() > MAX_IMAGE_BYTES {
            return Err(format!("{}: more than {MAX_IMAGE_BYTES} bytes", path.display()).into());
        }
        // `<source>.<arch>.<cubin|ptx>`; anything else is not ours.
        let [source, arch, kind] = name.split('.').collect::<Vec<_>>()[..] else {
            println!("cargo::warning={}: not <source>.<arch>.<cubin|ptx>, left out", path.display());
            continue;
        };
        let bytes = std::fs::read(&path)?;
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name.as_bytes());
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(&bytes);
        std::fs::write(out.join(name), &bytes)?;
        let kind = if kind == "cubin" { "Kind::Cubin" } else { "Kind::Ptx" };
        writeln!(
            table,
            "Image {{ source: {source:?}, arch: {arch:?}, kind: {kind}, bytes: include_bytes!(concat!(env!(\"OUT_DIR\"), {:?})) }},",
            format!("/{name}")
        )?;
    }
    table.push(']');
    std::fs::write(out.join("images.rs"), table)?;
    let digest: String = hash.finalize().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    });
    let digest = if names.is_empty() { "None".to_owned() } else { format!("Some({digest:?})") };
    std::fs::write(out.join("images_sha256.rs"), digest)?;
    Ok(())
}
